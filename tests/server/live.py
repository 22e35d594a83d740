"""A real server on loopback, in a thread of this process, over a fake engine or any other."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx

from service.api.app import create_app
from service.api.exchange import StreamTimes
from service.engine.async_engine import AsyncEngine
from service.server import DrainingServer, listen, make_server, url_of
from tests.service.api.asgi import settings_of
from tests.service.engine.fakes import make_fake_engine


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


class Live:
    """The server, from `with` to its end. `settings` as in service/config.py; the rest goes to the fake engine."""

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        engine: AsyncEngine | None = None,
        times: StreamTimes | None = None,
        **fake: Any,
    ) -> None:
        self.settings = settings_of(**{"drain_timeout_s": 5.0, **(settings or {})})
        self.engine = engine or make_fake_engine(**fake)
        self.app = create_app(self.engine, self.settings, times)
        self.sock = listen("127.0.0.1", 0)
        self.url = url_of(self.sock)
        self.port = int(self.sock.getsockname()[1])
        self.server: DrainingServer = make_server(self.app, self.engine, self.settings, self.sock)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, name="server")
        # A connection for each request; a client for each would read the machine's certificates every time.
        self.http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.server.serve(sockets=[self.sock]))

    def __enter__(self) -> Live:
        self.thread.start()
        wait_until(lambda: self.server.was_ready or not self.thread.is_alive(), 60.0)
        assert self.server.was_ready
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.loop.call_soon_threadsafe(self.server.begin_drain)
        self.thread.join(15)
        assert not self.thread.is_alive()
        assert self.engine.shutdown()

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(self.url + path, json=body)

    def at_rest(self) -> None:
        """Wait until the engine holds nothing and nobody is being answered."""
        wait_until(lambda: self.engine.stats()["open"] == 0 and self.engine.stats()["blocks_used"] == 0)
        wait_until(lambda: not self.server.server_state.tasks)
        assert self.engine.stats()["idle_leaks"] == 0
        wait_until(lambda: self.engine.stats()["inbox"] == 0)


class Loading(Live):
    """A server whose model is loading until the end."""

    def __init__(self) -> None:
        self._may_load = threading.Event()
        super().__init__(before_load=lambda: self._may_load.wait(60) and None)

    def __enter__(self) -> Live:
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *error: Any) -> None:
        self._may_load.set()
        wait_until(lambda: self.server.was_ready)
        super().__exit__(*error)


def request_bytes(path: str, body: bytes, extra: str = "") -> bytes:
    """A whole HTTP/1.1 POST."""
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    while piece := _receive(sock):
        data += piece
    return data


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""
