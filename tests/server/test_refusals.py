"""Each condition of the table of errors on a running server: status, type, code, field, headers, one object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.asking import LEAST, MESSAGES
from tests.server.live import Live, Loading, wait_until
from tests.service.api.asgi import error_of
from tests.service.engine.fakes import endless

OURS = [path for path in LEAST if path != "/v1/messages"]  # whose clients read an object of another shape
ALSO = ["/tokenize", "/detokenize", "/apply-template"]
EVERY_TEXT = b'"prompt": "a", "messages": "a", "input": "a", "content": "a", "tokens": [1]'
BAD_BODIES = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"[]", "invalid_json"),
    (b'{"prompt": "\xff"}', "invalid_json"),
    (
        b'{"prompt": "a", "messages": "a", "input": "a", "content": "a", "tokens": [1], "seed": NaN}',
        "invalid_parameter",
    ),
    (b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_parameter"),
]


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    """A server that takes little, asks for a key and has room for one running and one waiting request."""
    settings = {"api_key": "k", "max_body_bytes": 1024, "max_header_bytes": 1024}
    with Live(settings, choose=endless, step_s=0.01, n_ctx=200, max_running=1, max_queue=1) as server:
        server.http.headers["Authorization"] = "Bearer k"
        yield server


@pytest.mark.parametrize("path", [*OURS, *ALSO])
@pytest.mark.parametrize(("content", "code"), BAD_BODIES, ids=[repr(content)[:16] for content, _ in BAD_BODIES])
def test_what_is_no_body_is_400_on_every_route(live: Live, path: str, content: bytes, code: str) -> None:
    error = error_of(live.http.post(live.url + path, content=content), 400, code)
    assert error["type"] == "invalid_request_error"
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["param"] is None) == (code == "invalid_json")


@pytest.mark.parametrize("path", OURS)
def test_the_example_of_the_contract_an_invalid_temperature(live: Live, path: str) -> None:
    error = error_of(live.post(path, {**LEAST[path], "temperature": 2.5}), 400, "invalid_parameter")
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "temperature"
    assert all(word in error["message"] for word in ("temperature", "2.5", "less than or equal to 2"))


@pytest.mark.parametrize("path", OURS)
def test_a_prompt_that_does_not_fit_says_both_phrases_and_both_numbers(live: Live, path: str) -> None:
    error = error_of(live.post(path, {**LEAST[path], "n_ctx": 8}), 400, "context_length_exceeded")
    assert error["type"] == "exceed_context_size_error"
    assert "exceeds the available context size" in error["message"]
    assert "maximum context length" in error["message"]
    assert error["n_ctx"] == 8
    assert error["n_prompt_tokens"] > 8
    assert str(error["n_prompt_tokens"]) in error["message"]


def test_a_prompt_beyond_the_servers_own_context_is_the_same_400(live: Live) -> None:
    n_ctx = live.engine.info.n_ctx
    error = error_of(live.post("/completion", {"prompt": "x" * n_ctx}), 400, "context_length_exceeded")
    assert (error["n_ctx"], error["n_prompt_tokens"]) == (n_ctx, n_ctx + 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"reasoning_effort": "high"}, "reasoning_effort"), ({"priority": 3}, "priority"), ({"lora": [1]}, "lora")],
)
def test_what_is_known_and_not_served_is_400_not_supported(live: Live, fields: dict[str, Any], param: str) -> None:
    error = error_of(live.post("/v1/chat/completions", {"messages": MESSAGES, **fields}), 400, "not_supported")
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/models", "/nowhere", "/docs", "/metrics"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": ""}], ids=str)
def test_without_the_key_nothing_is_told_but_401(small: Live, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        response = httpx.request(method, small.url + path, headers=headers, verify=False)
        assert error_of(response, 401, "invalid_api_key")["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"


def test_no_such_route_and_a_wrong_method_have_the_object(small: Live) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        missing = small.http.request(method, small.url + "/nowhere")
        assert error_of(missing, 404, "not_found")["type"] == "not_found_error"
        if method != "POST":
            wrong = small.http.request(method, small.url + "/completion")
            assert error_of(wrong, 405, "method_not_allowed")["type"] == "invalid_request_error"
            assert wrong.headers["allow"] == "POST"


def test_too_large_a_body_is_413_and_too_large_a_header_431(small: Live) -> None:
    body = error_of(small.post("/completion", {"prompt": "x" * 2000}), 413, "too_large")
    header = error_of(small.http.get(small.url + "/health", headers={"X-Filler": "x" * 1100}), 431, "too_large")
    assert body["type"] == header["type"] == "invalid_request_error"
    assert "1024 bytes" in body["message"]
    assert "1024 bytes" in header["message"]


@pytest.mark.parametrize("path", OURS)
def test_a_full_queue_is_503_with_the_time_to_try_again(small: Live, path: str) -> None:
    socks = [small.connect() for _ in range(2)]
    for sock in socks:
        sock.sendall(b"POST /completion HTTP/1.1\r\nHost: a\r\nX-Api-Key: k\r\nContent-Length: 16\r\n\r\n")
        sock.sendall(b'{"prompt": "hi"}')
    wait_until(lambda: small.engine.stats()["open"] == 2)
    response = small.post(path, dict(LEAST[path]))
    assert error_of(response, 503, "queue_full")["type"] == "unavailable_error"
    assert int(response.headers["retry-after"]) > 0
    assert small.http.get(small.url + "/health").status_code == 200
    error_of(small.http.get(small.url + "/health/ready"), 503, "queue_full")
    for sock in socks:
        sock.close()
    small.at_rest()


def test_a_server_without_its_model_is_503_but_alive() -> None:
    with Loading() as live:
        for path in ("/health", "/health/ready", "/v1/models", "/props"):
            response = live.http.get(live.url + path)
            assert error_of(response, 503, "model_loading")["type"] == "unavailable_error"
            assert int(response.headers["retry-after"]) > 0
        error_of(live.post("/chat/completions", {"messages": MESSAGES}), 503, "model_loading")
        assert live.http.get(live.url + "/health/live").status_code == 200


def test_our_own_fault_is_500() -> None:
    def fail(row: object) -> str | None:
        return "not a number" if row.request.num_generated == 3 else None  # type: ignore[attr-defined]

    with Live(row_error=fail) as live:
        error = error_of(live.post("/chat/completions", {"messages": MESSAGES}), 500, "internal_error")
        assert (error["type"], error["param"]) == ("server_error", None)
