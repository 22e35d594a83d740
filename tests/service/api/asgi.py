"""A client that calls the application in this process, over one event loop, from plain test functions."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from starlette.types import Message

from service.api.app import create_app
from service.api.exchange import StreamTimes
from service.config import Settings
from service.engine.async_engine import AsyncEngine
from tests.service.engine.fakes import make_fake_engine

T = TypeVar("T")
CHAT = {"messages": [{"role": "user", "content": "hello there"}]}


def settings_of(**values: Any) -> Settings:
    """Settings from these values and the defaults, whatever the environment says."""
    return Settings.model_validate({**{name: f.default for name, f in Settings.model_fields.items()}, **values})


class Client:
    """Requests to an application over a fake engine; `settings` and `engine` go to where their names say."""

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        times: StreamTimes | None = None,
        ready: bool = True,
        **engine: Any,
    ) -> None:
        self.runner = asyncio.Runner()
        self.engine: AsyncEngine = make_fake_engine(**engine)
        self.app: FastAPI = create_app(self.engine, settings_of(**(settings or {})), times)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://server")
        if ready:
            self.run(self.engine.wait_ready())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self.http.aclose())
        self.engine.shutdown()
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.run(self.http.get(path, **kwargs))

    def post(self, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.run(self.http.post(path, content=content, **kwargs))

    def stream(self, path: str, body: dict[str, Any]) -> tuple[httpx.Response, list[dict[str, Any]]]:
        """The response and its events without `[DONE]`, which must be last."""
        response = self.post(path, {**body, "stream": True})
        return response, events_of(response.text)

    def watch(self, path: str, body: dict[str, Any], on_text: Callable[[str], None]) -> str:
        """The text of an answer; `on_text` sees all of it so far whenever there is more, while it is being made."""
        return self.run(self._watch(path, json.dumps(body).encode(), on_text))

    async def _watch(self, path: str, body: bytes, on_text: Callable[[str], None]) -> str:
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        text = ""

        async def receive() -> Message:
            return incoming.pop() if incoming else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: Message) -> None:
            nonlocal text
            text += message.get("body", b"").decode()
            on_text(text)

        await self.app(scope, receive, send)
        return text

    def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Turn the loop until the condition holds."""
        self.run(until(condition, seconds))


@contextmanager
def loading_client() -> Iterator[Client]:
    """A client of a server whose model is loading until the end of the test."""
    may_load = threading.Event()
    with Client(ready=False, before_load=lambda: may_load.wait(20) and None) as client:
        yield client
        may_load.set()
        client.run(client.engine.wait_ready())


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; the frames are checked on the way."""
    assert text.endswith("data: [DONE]\n\n")
    frames = [frame for frame in text.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error object of a refusal, checked for its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name, error), *others = response.json().items()
    assert name == "error"
    assert not others
    assert error.keys() >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["code"] == code
    return dict(error)
