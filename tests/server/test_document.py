"""The document at /openapi.json against what a running server answers: every route, status, body and event."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from service.api import web_page
from service.api.app import FAMILIES
from service.api.shapes import SHAPES
from service.engine.plan import StepPlan
from tests.server.documented import Documented, Route
from tests.server.live import Live, Loading, read_all, request_bytes
from tests.service.engine.fakes import endless

MESSAGES = [{"role": "user", "content": "Tell me of a cat."}]
TOOLS = [{"type": "function", "function": {"name": "wait"}}]
SHORT = {"max_tokens": 6, "seed": 1}
CHATS: list[dict[str, Any]] = [
    {"messages": MESSAGES, **SHORT},
    {"messages": MESSAGES, **SHORT, "n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    {"messages": MESSAGES, **SHORT, "prompt_logprobs": 1, "logit_bias": [[5, False], [6, 1.5]], "stop": ["a"]},
    {"messages": MESSAGES, **SHORT, "prediction": {"type": "content", "content": "Once upon a time"}},
    {"messages": MESSAGES, "seed": 1, "max_tokens": 60, "tools": TOOLS, "tool_choice": "required"},
]
NATIVES: list[dict[str, Any]] = [
    {"prompt": "Once upon", **SHORT},
    {"prompt": ["Once", [5, 6, "upon"]], **SHORT, "n": 2, "n_probs": 2, "return_tokens": True},
    {"prompt": "Once upon", **SHORT, "response_fields": []},
]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/chat/completions": CHATS,
    "/v1/chat/completions": CHATS,
    "/completion": NATIVES,
    "/completions": NATIVES,
    "/v1/completions": [
        {"prompt": "Once upon", **SHORT},
        {"prompt": ["Once", "upon"], **SHORT, "echo": True, "logprobs": 2, "prompt_logprobs": 1},
        {"prompt": [5, 6], **SHORT, "n": 2, "return_token_ids": True, "echo": True},
    ],
    "/v1/responses": [{"input": "Once upon", "max_output_tokens": 6}, {"input": "Once", "logit_bias": {"497": 100}}],
    "/v1/messages": [
        {"messages": MESSAGES, "max_tokens": 6},
        {"messages": MESSAGES, "max_tokens": 40, "stop_sequences": ["a", "e", "t"]},
    ],
}
PLAIN_BODIES: dict[str, list[dict[str, Any]]] = {
    "/tokenize": [{"content": "Once é"}, {"content": "Once é", "with_pieces": True}, {"messages": MESSAGES}],
    "/detokenize": [{"tokens": [70, 71]}],
    "/apply-template": [{"messages": MESSAGES}],
    "/v1/messages/count_tokens": [{"messages": MESSAGES}],
}
PLAIN_BODIES |= {"/v1" + path: PLAIN_BODIES[path] for path in ("/tokenize", "/detokenize", "/apply-template")}
STREAMED: list[dict[str, Any]] = [
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]
EVERY_TIME = {"stream": True, "timings_per_token": True}  # what these two families have no place for
FOREIGN = ("/v1/responses", "/v1/messages")


@pytest.fixture(scope="module")
def document(model: Live) -> Documented:
    return Documented(model.url)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def closed() -> Iterator[Live]:
    """A server that asks for a key and a host, and takes little."""
    settings = {"api_key": "k", "allowed_hosts": "127.0.0.1", "max_header_bytes": 1024, "max_body_bytes": 1024}
    with Live({**settings, "receive_timeout_s": 0.5}) as server:
        yield server


def requests(route: Route) -> list[dict[str, Any]]:
    """Bodies that this route answers with a success."""
    _, path = route
    if path in PLAIN_BODIES:
        return PLAIN_BODIES[path]
    wishes = [{}, *STREAMED, *([] if path in FOREIGN else [EVERY_TIME])]
    return [body | wish for body in BODIES[path] for wish in wishes]


def ask(http: httpx.Client, live: Live, route: Route, **request: Any) -> httpx.Response:
    method, path = route
    return http.request(method, live.url + path.replace("{model_id}", live.engine.info.model_id), **request)


def test_every_route_of_the_application_is_in_the_document_and_no_other(document: Documented) -> None:
    served = {
        (method.lower(), route.path_format)
        for family in (*FAMILIES, web_page)
        for route in family.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert set(document.routes()) == served
    assert {method for method, _ in served} == {"get", "post", "head"}


@pytest.mark.parametrize(
    ("path", "response"),
    [
        ("/health", httpx.Response(200, json={"status": "ok", "more": 1})),
        ("/health", httpx.Response(200, json={})),
        ("/health", httpx.Response(200, json={"status": "bad"})),
        ("/health", httpx.Response(418, json={"status": "ok"})),
        ("/health", httpx.Response(200, text="ok")),
        ("/health", httpx.Response(503, json={"error": {"message": "m", "type": "server_error"}})),
        ("/metrics", httpx.Response(200, text="")),
    ],
    ids=lambda item: str(getattr(item, "text", item))[:40],
)
def test_an_answer_that_is_not_as_the_document_says_is_noticed(
    document: Documented, path: str, response: httpx.Response
) -> None:
    with pytest.raises(AssertionError):
        document.check(("get", path), response)


@pytest.mark.parametrize("data", ['{"object": "chat.completion.chunk"}', '{"error": {}}', "[]"])
def test_an_event_that_is_not_as_the_document_says_is_noticed(document: Documented, data: str) -> None:
    headers = {"content-type": "text/event-stream"}
    for text in (f"data: {data}\n\ndata: [DONE]\n\n", f"data: {data}\n\n"):
        with pytest.raises(AssertionError):
            document.check(("post", "/chat/completions"), httpx.Response(200, headers=headers, text=text))


def test_every_success_and_every_event_is_as_the_document_says(
    model: Live, document: Documented, http: httpx.Client
) -> None:
    unserved = [route for route in document.routes() if 200 not in document.statuses(route)]
    assert {path.removeprefix("/v1") for _, path in unserved} == {"/embeddings", "/embedding", "/rerank", "/reranking"}
    for route in document.routes():
        if route in unserved:
            response = ask(http, model, route, json={})
            assert response.status_code == 501
            document.check(route, response)
            continue
        for body in requests(route) if route[0] == "post" else [None]:
            response = ask(http, model, route, json=body)
            assert response.status_code == 200, (route, body, response.text)
            document.check(route, response)
    not_here = {"SelectedFields", "Slot", "AnthropicError", "ResponseErrorEvent"}
    assert {shape.__name__ for shape in SHAPES} - not_here <= document.met


def test_selected_fields_are_as_the_document_says(model: Live, document: Documented, http: httpx.Client) -> None:
    wish = {"prompt": "Once", "n_predict": 2, "response_fields": ["content", "generation_settings/n_predict"]}
    selected = document.document["components"]["schemas"]["SelectedFields"]
    assert selected["additionalProperties"] is True
    answer = http.post(model.url + "/completion", json=wish).json()
    assert answer.keys() == set(wish["response_fields"])


def test_what_is_running_is_as_the_document_says(http: httpx.Client) -> None:
    seen = threading.Event()

    def step(plan: StepPlan) -> None:
        if any(row.request.num_generated == 3 for row in plan.rows):
            seen.wait(10)

    with Live(choose=endless, before_step=step) as live:
        document = Documented(live.url)
        with http.stream("POST", live.url + "/completion", json={"prompt": "hi", "stream": True}) as answer:
            next(answer.iter_bytes())
            response = http.get(live.url + "/slots")
            seen.set()
        document.check(("get", "/slots"), response)
        assert document.met == {"Slot"}
        assert [slot["is_processing"] for slot in response.json()] == [True, False, False, False]
        live.at_rest()


REFUSALS = {
    400: {"headers": {"Host": "elsewhere", "X-Api-Key": "k"}},
    401: {},
    413: {"headers": {"X-Api-Key": "k"}, "content": b" " * 2000},
    431: {"headers": {"X-Api-Key": "k", "X-Filler": "x" * 1100}},
}


@pytest.mark.parametrize("status", REFUSALS)
def test_every_route_refuses_what_it_documents_to_refuse(closed: Live, http: httpx.Client, status: int) -> None:
    document = Documented(closed.url, {"X-Api-Key": "k"})
    routes = [route for route in document.routes() if status in document.statuses(route)]
    for route in routes:
        response = ask(http, closed, route, **REFUSALS[status])
        assert response.status_code == status, (route, response.text)
        document.check(route, response)
    others = [path for _, path in set(document.routes()) - set(routes)]
    if status == 401:
        assert set(others) == {"/", "/health", "/v1/health", "/health/live", "/health/ready"}
    elif status == 413:
        assert {path for path in others if path in BODIES or path in PLAIN_BODIES} == set()
    else:
        assert others == []


def test_every_route_with_a_body_refuses_a_bad_one_as_documented(
    model: Live, document: Documented, http: httpx.Client
) -> None:
    for route in document.routes():
        if route[1] in BODIES or route[1] in PLAIN_BODIES:
            for content in (b"{", b"[]", b"{}", b'{"temperature": NaN}', b'{"prompt": 1, "messages": 1, "tokens": 1}'):
                response = ask(http, model, route, content=content)
                assert response.status_code == 400, (route, content)
                document.check(route, response)


def test_a_wrong_method_or_path_is_refused_as_documented_everywhere(
    model: Live, document: Documented, http: httpx.Client
) -> None:
    for method, path in document.routes():
        response = http.put(model.url + path)
        assert response.status_code == 405
        document.check((method if method != "head" else "get", path), response)
    document.check(("get", "/v1/models/{model_id}"), http.get(model.url + "/v1/models/nobody"))


def test_every_route_that_needs_the_model_says_so_while_it_loads_and_no_other(http: httpx.Client) -> None:
    with Loading() as live:
        document = Documented(live.url)
        for route in document.routes():
            response = http.request(route[0], live.url + route[1], json={} if route[0] == "post" else None)
            assert (response.status_code == 503) == (503 in document.statuses(route)), route
            document.check(route, response)


def test_what_fails_after_admission_is_as_the_document_says(http: httpx.Client) -> None:
    def fail(row: object) -> str | None:
        return "not a number" if row.request.num_generated == 3 else None  # type: ignore[attr-defined]

    with Live(row_error=fail) as live:
        document = Documented(live.url)
        for path, bodies in BODIES.items():
            body = {**bodies[0], "max_tokens": 6} if "max_tokens" in bodies[0] else bodies[0]
            for stream, status in ((False, 500), (True, 200)):
                response = ask(http, live, ("post", path), json=body | {"stream": stream})
                assert response.status_code == status, response.text
                assert "not a number" in response.text
                document.check(("post", path), response)
        assert {"ErrorObject", "AnthropicError", "ResponseErrorEvent"} <= document.met


def test_a_request_that_does_not_arrive_is_answered_as_documented(closed: Live) -> None:
    document = Documented(closed.url, {"X-Api-Key": "k"})
    for path in ("/completion", "/v1/messages"):
        with closed.connect() as sock:
            sock.sendall(request_bytes(path, b"{}")[:-1])
            head, _, body = read_all(sock).partition(b"\r\n\r\n")
        headers = dict(line.decode().split(": ") for line in head.split(b"\r\n")[1:])
        document.check(("post", path), httpx.Response(408, headers=headers, content=body))
