"""The routes there are, by name: each answers on a running server what its family answers, and its other names too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.asking import LEAST, MESSAGES, ask, content_of
from tests.server.live import Live
from tests.service.api.asgi import error_of

# Each GET route, and a key (or a text) that tells its answer from every other's.
PAGES = {
    "/": '<meta name="bitnet-server"',
    "/health": '{"status":"ok"}',
    "/v1/health": '{"status":"ok"}',
    "/health/live": '{"status":"ok"}',
    "/health/ready": '{"status":"ok"}',
    "/models": '"object":"list"',
    "/v1/models": '"object":"list"',
    "/v1/models/fake": '"object":"model"',
    "/tokenizer_info": '"tokenizer_class"',
    "/v1/tokenizer_info": '"tokenizer_class"',
    "/props": '"default_generation_settings"',
    "/slots": '"is_processing":false',
    "/metrics": "bitnet:num_requests_running",
    "/docs": "<h2>Routes</h2>",
    "/openapi.json": '"openapi":"3.',
}
# Each generation route, and where its answer has its text.
TEXTS: dict[str, tuple[str | int, ...]] = {
    "/chat/completions": ("choices", 0, "message", "content"),
    "/v1/chat/completions": ("choices", 0, "message", "content"),
    "/completion": ("content",),
    "/completions": ("content",),
    "/v1/completions": ("choices", 0, "text"),
    "/v1/responses": ("output", 0, "content", 0, "text"),
    "/v1/messages": ("content", 0, "text"),
}
TOKEN_ROUTES: list[tuple[str, dict[str, Any], str, Any]] = [
    ("/tokenize", {"content": "ab"}, "tokens", [97, 98]),
    ("/detokenize", {"tokens": [97, 98]}, "content", "ab"),
    ("/apply-template", {"messages": MESSAGES}, "prompt", "<user>Tell me of a small model.<assistant>"),
]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers(live: Live, path: str) -> None:
    response = live.http.get(live.url + path)
    assert response.status_code == 200
    assert PAGES[path] in response.text


def test_the_health_of_the_contract_is_one_key_and_no_more(live: Live) -> None:
    assert live.http.get(live.url + "/health").json() == {"status": "ok"}
    head = live.http.head(live.url + "/health")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", TEXTS)
def test_every_generation_route_answers_with_the_text(live: Live, path: str) -> None:
    answer: Any = ask(live, path)
    for key in TEXTS[path]:
        answer = answer[key]
    told = LEAST[path].get("prompt") or LEAST[path].get("input") or MESSAGES[0]["content"]
    assert answer == told


@pytest.mark.parametrize(
    ("one", "other"),
    [("/chat/completions", "/v1/chat/completions"), ("/completion", "/completions")],
)
def test_two_names_of_a_generation_route_answer_the_same(live: Live, one: str, other: str) -> None:
    assert content_of(ask(live, one)) == content_of(ask(live, other))


def test_the_completions_of_v1_have_openais_shape_and_those_beside_it_the_native_one(live: Live) -> None:
    assert ask(live, "/v1/completions")["object"] == "text_completion"
    assert ask(live, "/completions")["stop_type"] == "eos"


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(("path", "body", "key", "value"), TOKEN_ROUTES, ids=lambda item: str(item)[:16])
def test_every_token_route_answers_also_below_v1(
    live: Live, prefix: str, path: str, body: dict[str, Any], key: str, value: Any
) -> None:
    assert live.post(prefix + path, body).json()[key] == value


def test_tokens_of_a_message_are_counted(live: Live) -> None:
    answer = live.post("/v1/messages/count_tokens", {"messages": MESSAGES}).json()
    assert answer == {"input_tokens": ask(live, "/v1/chat/completions")["usage"]["prompt_tokens"]}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/embedding", "/rerank", "/v1/rerank"])
def test_what_needs_another_model_is_501(live: Live, path: str) -> None:
    error = error_of(live.post(path, {"input": "a"}), 501, "not_supported")
    assert error["type"] == "not_supported_error"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1"), ("POST", "/infill"), ("GET", "/v1/models/other")])
def test_what_is_not_there_is_404(live: Live, method: str, path: str) -> None:
    assert error_of(live.http.request(method, live.url + path), 404, "not_found")["type"] == "not_found_error"


def test_a_model_is_one_of_the_list_and_found_by_its_id(live: Live) -> None:
    (listed,) = live.http.get(live.url + "/v1/models").json()["data"]
    assert live.http.get(live.url + f"/v1/models/{listed['id']}").json() == listed
    assert listed["meta"]["n_ctx"] == live.engine.info.n_ctx
