"""Statuses, types and codes: the table is whole, and every route and state answers with the one error object."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from service.api.errors import TABLE, from_engine
from service.engine.errors import (
    ContextLengthExceeded,
    Draining,
    EngineDead,
    EngineError,
    GenerationFailed,
    InvalidParameter,
    ModelLoading,
    QueueFull,
)
from service.engine.plan import ScheduledRow
from tests.service.api.asgi import CHAT, Client, error_of
from tests.service.engine.fakes import endless

GENERATION_PATHS = ["/chat/completions", "/v1/chat/completions", "/completion", "/completions", "/v1/completions"]


def tree(error: type[EngineError]) -> Iterator[type[EngineError]]:
    yield error
    for below in error.__subclasses__():
        yield from tree(below)


def test_every_error_of_the_engine_has_a_row() -> None:
    assert [error.__name__ for error in tree(EngineError) if error not in TABLE] == []


@pytest.mark.parametrize(
    ("error", "status", "type", "code", "retry"),
    [
        (InvalidParameter("m", "prompt"), 400, "invalid_request_error", "invalid_parameter", None),
        (ContextLengthExceeded(9, 8), 400, "exceed_context_size_error", "context_length_exceeded", None),
        (ModelLoading(), 503, "unavailable_error", "model_loading", "5"),
        (Draining(), 503, "unavailable_error", "draining", "30"),
        (QueueFull(3), 503, "unavailable_error", "queue_full", "1"),
        (EngineDead("secret"), 503, "unavailable_error", "engine_dead", "30"),
        (GenerationFailed("m"), 500, "server_error", "internal_error", None),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, EngineError) else "",
)
def test_the_table_says_what_the_settings_page_says(
    error: EngineError, status: int, type: str, code: str, retry: str | None
) -> None:
    shown = from_engine(error)
    assert (shown.status, shown.body["error"]["type"], shown.code) == (status, type, code)
    assert shown.headers.get("Retry-After") == retry
    assert "secret" not in str(shown.body)


def test_an_error_of_a_class_unknown_to_the_table_is_shown_as_its_nearest() -> None:
    class BadToken(InvalidParameter):
        pass

    assert from_engine(BadToken("m", "prompt")).body["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/page"),
        ("GET", "/nope"),
        ("POST", "/v1/nope"),
        ("GET", "/health/"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/other"),
        ("GET", "/v1/models/org/name"),
        ("GET", "/redoc"),
        ("POST", "/infill"),
        ("GET", "/../../etc/passwd"),
    ],
)
def test_an_unknown_route_or_model_is_404(client: Client, method: str, path: str) -> None:
    assert error_of(client.run(client.http.request(method, path)), 404, "not_found")["type"] == "not_found_error"


@pytest.mark.parametrize("path", [*GENERATION_PATHS, "/health", "/v1/models", "/models", "/v1/models/fake"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_a_wrong_method_is_405_with_allow(client: Client, path: str, method: str) -> None:
    served = "POST" if path in GENERATION_PATHS else "GET"
    if method == served:
        return
    response = client.run(client.http.request(method, path))
    error_of(response, 405, "method_not_allowed")
    assert served in response.headers["allow"]


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
def test_embeddings_are_switched_off(client: Client, path: str) -> None:
    assert error_of(client.post(path, {"input": "a"}), 501, "not_supported")["type"] == "not_supported_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "x" * 128}]}),
        ("/chat/completions", {"messages": [{"role": "user", "content": "x" * 128}], "stream": True}),
        ("/completion", {"prompt": "x" * 127}),
        ("/completion", {"prompt": "x" * 127, "stream": True}),
        ("/completion", {"prompt": [5] * 128}),
        ("/v1/completions", {"prompt": "x" * 20, "n_ctx": 20}),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_in_the_words_of_both_worlds(
    client: Client, path: str, body: dict[str, object]
) -> None:
    error = error_of(client.post(path, body), 400, "context_length_exceeded")
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == body.get("n_ctx", 128)
    assert error["n_prompt_tokens"] >= error["n_ctx"]
    assert "exceeds the available context size" in error["message"]
    assert "maximum context length" in error["message"]


def test_health_and_models(client: Client) -> None:
    for path in ("/health", "/v1/health", "/health/live", "/health/ready"):
        assert (client.get(path).status_code, client.get(path).json()) == (200, {"status": "ok"})
    assert client.run(client.http.head("/health")).status_code == 200
    for path in ("/models", "/v1/models"):
        answer = client.get(path).json()
        assert answer["object"] == "list"
        assert [item["id"] for item in answer["data"]] == ["fake"]
    model = client.get("/v1/models/fake").json()
    assert (model["id"], model["object"], model["created"]) == ("fake", "model", 1_700_000_000)


def refused(client: Client, code: str) -> None:
    """All but liveness and our own documents is 503, whatever the body says."""
    requests = [client.post(path, body) for path in GENERATION_PATHS for body in (CHAT, {"prompt": "a"}, b"{")]
    requests += [client.get(path) for path in ("/health", "/v1/health", "/health/ready", "/models", "/v1/models/fake")]
    for response in requests:
        assert error_of(response, 503, code)["type"] == "unavailable_error"
        assert int(response.headers["retry-after"]) > 0
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/nope").status_code == 404


def test_while_the_model_is_loading_everything_is_503() -> None:
    may_load = threading.Event()
    with Client(ready=False, before_load=lambda: may_load.wait(10) or None) as client:
        refused(client, "model_loading")
        may_load.set()
        client.run(client.engine.wait_ready())
        assert client.get("/health").status_code == 200


def test_while_draining_everything_is_503() -> None:
    with Client() as client:
        client.run(client.engine.drain(1.0))
        refused(client, "draining")


def test_when_the_engine_is_dead_everything_is_503() -> None:
    def fail() -> None:
        raise ValueError("a broken checkpoint in /secret/place")

    with Client(ready=False, before_load=fail) as client:
        client.until(lambda: client.engine.state == "dead")
        refused(client, "engine_dead")
        assert "secret" not in client.get("/health").text


def test_a_full_queue_is_503_and_says_so_to_readiness_probes() -> None:
    with Client(max_queue=1, max_running=1, choose=endless, step_s=0.002, n_ctx=64) as client:

        async def crowd() -> None:
            running = [client.http.post("/completion", json={"prompt": "a"}) for _ in range(2)]
            tasks = [asyncio.ensure_future(request) for request in running]
            while client.engine.stats()["open"] != 2:
                await asyncio.sleep(0.002)
            response = await client.http.post("/completion", json={"prompt": "a"})
            error_of(response, 503, "queue_full")
            assert response.headers["retry-after"] == "1"
            stream = await client.http.post("/completion", json={"prompt": "a", "stream": True})
            error_of(stream, 503, "queue_full")
            error_of(await client.http.get("/health/ready"), 503, "queue_full")
            assert (await client.http.get("/health")).status_code == 200
            assert [(await task).status_code for task in tasks] == [200, 200]

        client.run(crowd())
        assert client.get("/health/ready").status_code == 200


def failing(row: ScheduledRow) -> str | None:
    """A row error after the third token of prompts that begin with `bad`."""
    request = row.request
    return "poisoned" if bytes(request.prompt_ids[1:4]) == b"bad" and request.num_generated == 3 else None


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_a_row_that_goes_wrong_is_500_and_nobody_elses_affair(path: str) -> None:
    with Client(row_error=failing) as client:
        error = error_of(client.post(path, {"prompt": "bad luck"}), 500, "internal_error")
        assert error["type"] == "server_error"
        assert client.post(path, {"prompt": "good"}).status_code == 200
        assert client.engine.stats()["open"] == 0


def test_a_bug_of_ours_is_500_in_the_same_shape_and_one_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Client() as client:

        async def broken() -> None:
            raise ZeroDivisionError("with a secret")

        client.app.add_api_route("/broken", broken)
        response = client.get("/broken", headers={"X-Request-Id": "abc"})
        assert "secret" not in response.text
        assert error_of(response, 500, "internal_error")["type"] == "server_error"
        assert response.headers["x-request-id"] == "abc"
    assert [record.message for record in caplog.records if record.exc_info] == ["unexpected error"]
