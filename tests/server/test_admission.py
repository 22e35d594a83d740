"""Who is let in: the queue and its bound, no limit of rates, and the key, where a server asks for one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.config import Settings
from tests.server.asking import LEAST, ask
from tests.server.live import Live, request_bytes, wait_until
from tests.service.api.asgi import error_of
from tests.service.engine.fakes import endless

OPEN = ["/", "/health", "/v1/health", "/health/live", "/health/ready"]
CLOSED = ["/props", "/slots", "/metrics", "/v1/models", "/docs", "/openapi.json", "/tokenizer_info"]
GOOD_KEYS = [
    {"Authorization": "Bearer s3cret"},
    {"Authorization": "bearer s3cret"},
    {"X-Api-Key": "s3cret"},
    {"X-Api-Key": "s3cret", "Authorization": "Bearer wrong"},
]
BAD_KEYS = [
    {},
    {"Authorization": "s3cret"},
    {"Authorization": "Basic s3cret"},
    {"Authorization": "Bearer s3cre"},
    {"Authorization": "Bearer s3cret2"},
    {"X-Api-Key": "S3cret"},
    {"Cookie": "key=s3cret"},
]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Live]:
    with Live({"api_key": "s3cret"}) as server:
        yield server


def test_the_queue_holds_512_by_default_and_its_bound_is_a_setting() -> None:
    assert Settings.model_fields["max_queue"].default == 512
    gate = threading.Event()
    with Live(choose=endless, before_step=lambda plan: gate.wait(10) or None, max_running=2, max_queue=3) as live:
        socks = [live.connect() for _ in range(5)]
        for sock in socks:
            sock.sendall(request_bytes("/completion", b'{"prompt": "hi"}'))
        wait_until(lambda: live.engine.stats()["open"] == 5)
        for fields in ({"stream": False}, {"stream": True}, {"prompt": ["a", "b"]}):
            response = live.post("/completion", {"prompt": "hi", **fields})
            error_of(response, 503, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
        gate.set()
        for sock in socks:
            sock.close()
        live.at_rest()
        assert ask(live, "/completion", n_predict=1)["tokens_predicted"] == 1


def test_nobody_is_slowed_down_for_asking_often(live: Live) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: live.post("/completion", {"prompt": f"{i}"}), range(200)))
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json()["content"] for answer in answers] == [str(i) for i in range(200)]
    assert not any(name.startswith(("x-ratelimit", "retry-after")) for answer in answers for name in answer.headers)


@pytest.mark.parametrize("path", [*OPEN, *CLOSED])
def test_without_a_key_set_nobody_is_asked_for_one(live: Live, path: str) -> None:
    assert live.http.get(live.url + path).status_code == 200
    assert live.http.get(live.url + path, headers={"Authorization": "Bearer anything"}).status_code == 200


@pytest.mark.parametrize("headers", GOOD_KEYS, ids=str)
def test_the_key_opens_every_route(keyed: Live, headers: dict[str, str]) -> None:
    for path, body in LEAST.items():
        assert keyed.http.post(keyed.url + path, json=body, headers=headers).status_code == 200
    for path in CLOSED:
        assert keyed.http.get(keyed.url + path, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", BAD_KEYS, ids=str)
def test_what_is_not_the_key_opens_only_health_and_the_page(keyed: Live, headers: dict[str, str]) -> None:
    for path, body in LEAST.items():
        response = keyed.http.post(keyed.url + path, json=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "s3cret" not in response.text
    for path in CLOSED:
        error_of(keyed.http.get(keyed.url + path, headers=headers), 401, "invalid_api_key")
    for path in OPEN:
        assert keyed.http.get(keyed.url + path, headers=headers).status_code == 200


def test_pages_of_other_origins_get_leave_where_it_is_set_and_only_there(live: Live) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with Live({"cors_origins": "https://a.example", "api_key": "k"}) as shared:
        before = shared.http.options(shared.url + "/v1/chat/completions", headers=asked)
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (204, "https://a.example")
        answer = shared.http.get(shared.url + "/health", headers={"Origin": "https://a.example"})
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        other = shared.http.get(shared.url + "/health", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
    silent = live.http.get(live.url + "/health", headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in silent.headers


def test_an_id_of_the_client_comes_back_and_another_is_made_where_there_is_none(live: Live) -> None:
    mine = {"X-Request-Id": "mine-1"}
    answers = [
        live.http.get(live.url + "/health", headers=mine),
        live.http.post(live.url + "/completion", json={"prompt": "a", "stream": True}, headers=mine),
        live.http.get(live.url + "/nowhere", headers=mine),
    ]
    assert [answer.headers["x-request-id"] for answer in answers] == ["mine-1"] * 3
    made = {live.http.get(live.url + "/health").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
