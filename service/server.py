"""The serving process around the application: the listening socket, uvicorn, signals, and the one way to stop.

The first SIGTERM or SIGINT drains: the listener stays open and answers 503, running requests finish or get a last
event with an error at the deadline, then the process ends with status 0. The second ends it at once. uvicorn alone
would close the listener and, with sse-starlette's help, cut every stream.

Knows neither the model nor who made the engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from service.api.protocol import GuardedProtocol, guarded_protocol
from service.config import Settings
from service.engine.async_engine import AsyncEngine, Loaded
from service.engine.errors import EngineDead, Unavailable

logger = logging.getLogger(__name__)

EXIT_ENGINE_DEAD = 70
KEEP_ALIVE_S = 65  # longer than the idle time of the usual proxies, so that they close first
FLUSH_S = 5.0  # for answers that are complete to reach their readers, when the engine has nothing left to do
CLOSE_S = 1
LOAD_JOIN_S = 1.0


class ListenError(Exception):
    """The address cannot be listened on; the message is one plain line."""


class DrainingServer(uvicorn.Server):
    """uvicorn with the stop recipe. `failure`: the engine's death, if that is what ended it; `was_ready`: it had
    served; `signals`: those received."""

    def __init__(
        self, config: uvicorn.Config, engine: AsyncEngine, drain_timeout_s: float, url: str, has_page: bool
    ) -> None:
        super().__init__(config)
        self.engine = engine
        self.drain_timeout_s = drain_timeout_s
        self.url = url
        self.has_page = has_page
        self.signals: list[int] = []
        self.was_ready = False
        self.failure: EngineDead | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        logger.info("listening on %s, loading the model", self.url)
        self._tasks.append(self._loop.create_task(self._announce()))

    async def _announce(self) -> None:
        try:
            await self.engine.wait_ready()
        except Unavailable:
            return
        self.was_ready = True
        logger.info("ready: %s serves %s", self.url, self.engine.info.model_id)
        if self.has_page:
            logger.info("chat in a browser: %s/", self.url)
        body = '{"messages": [{"role": "user", "content": "Hello!"}]}'
        logger.info("try: curl %s/chat/completions -H 'Content-Type: application/json' -d '%s'", self.url, body)

    async def on_tick(self, counter: int) -> bool:
        if self.engine.state == "dead" and not self.should_exit:
            try:
                self.engine.raise_if_unavailable()
            except EngineDead as error:
                self.failure = error
            await self._flush()
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        """The signal handler, in the main thread. The base class's would raise the signal again at the end."""
        self.signals.append(sig)
        if self._loop is None:
            self.should_exit = True
        elif len(self.signals) == 1:
            self._loop.call_soon_threadsafe(self.begin_drain)
        else:
            self.force_exit = self.should_exit = True
            self._loop.call_soon_threadsafe(self._cut_all)

    def begin_drain(self) -> None:
        """Take nothing new, let what runs end, then stop. In the event loop's thread."""
        assert self._loop is not None
        logger.info(
            "stopping: running requests have %g s to finish; a second signal ends at once", self.drain_timeout_s
        )
        self._tasks.append(self._loop.create_task(self._drain()))

    async def _drain(self) -> None:
        await self.engine.drain(self.drain_timeout_s)
        await self._flush()
        self.should_exit = True

    async def _flush(self) -> None:
        """Wait until every answer is sent; requests that are still arriving are not waited for."""
        assert self._loop is not None
        deadline = self._loop.time() + FLUSH_S
        while self.server_state.tasks and self._loop.time() < deadline:
            for connection in self._connections():
                if connection.is_receiving:
                    connection.cut()
            await asyncio.sleep(0.02)
        if self.server_state.tasks:
            logger.warning("%d answers were not read in time", len(self.server_state.tasks))
            self._cut_all()

    def _connections(self) -> list[GuardedProtocol]:
        return [item for item in self.server_state.connections if isinstance(item, GuardedProtocol)]

    def _cut_all(self) -> None:
        for connection in self._connections():
            connection.cut()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises ListenError.

    Its connections send each event at once. asyncio does not ask for that on a socket it did not make itself, and the
    first token then waited some 40 ms for the client's acknowledgement of the headers.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address, family=family, backlog=2048)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        return sock
    except OSError as error:
        number = error.errno or 0  # negative where the name cannot be resolved, which has words of its own
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise ListenError(f"cannot listen on {host} port {port}: {reason}") from None


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """The address to type on this machine; for a socket that listens everywhere, the loopback one."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_tls(certfile: str, keyfile: str | None) -> None:
    """Raises ListenError for a certificate or key that cannot be used, before anything is loaded."""
    try:
        # A key under a password is refused: uvicorn would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise ListenError(f"cannot use the certificate {certfile} with key {keyfile or certfile}: {reason}") from None


def make_server(app: FastAPI, engine: AsyncEngine, settings: Settings, sock: socket.socket) -> DrainingServer:
    """A server for `sock`, to be run or served; `engine` may still be loading, and is not stopped by it.

    Raises ListenError for a certificate that cannot be used.
    """
    if settings.tls_certfile is not None:
        check_tls(settings.tls_certfile, settings.tls_keyfile)
    elif settings.tls_keyfile is not None:
        raise ListenError(f"tls_keyfile = {settings.tls_keyfile} is of no use without tls_certfile")
    config = uvicorn.Config(
        app,
        http=guarded_protocol(settings.receive_timeout_s),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        ssl_certfile=settings.tls_certfile,
        ssl_keyfile=settings.tls_keyfile,
    )
    url = url_of(sock, "https" if settings.tls_certfile else "http") + settings.path_prefix
    return DrainingServer(config, engine, settings.drain_timeout_s, url, settings.ui)


def run(app: FastAPI, engine: AsyncEngine, settings: Settings, factory: Callable[[], Loaded]) -> int:
    """Listen, start the engine with `factory`, serve until told to stop, and stop the engine.

    Returns the process's exit status: 0, or 70 if the engine died. Does not return after a second signal, nor where the
    engine thread cannot be joined. Raises ListenError; EngineDead, with the reason as its cause, if loading failed.
    """
    with listen(settings.host, settings.port) as sock:
        server = make_server(app, engine, settings, sock)
        engine.start(factory)
        server.run(sockets=[sock])
    if server.force_exit:
        _leave(128 + server.signals[-1])
    was_stopped = engine.shutdown(LOAD_JOIN_S)
    if server.failure is not None and not server.was_ready:
        raise server.failure
    status = 0 if server.failure is None else EXIT_ENGINE_DEAD
    logger.info("stopped")
    if not was_stopped:
        _leave(status)
    return status


def _leave(status: int) -> NoReturn:
    """End the process without waiting for threads that cannot be stopped."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
