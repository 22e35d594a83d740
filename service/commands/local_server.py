"""A server of one's own for a command: `inside` this process for a chat, `beside` it for measurements.

Both listen on a free loopback port, the first behind a key that nobody else is told.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from service.commands.client import Endpoint
from service.commands.exits import EXIT_FAILED, fail
from service.config import Settings

STOP_S = 30.0


@contextmanager
def inside(settings: Settings) -> Iterator[Endpoint]:
    """Serve in a thread. Raises what loading raises: ConfigError, CheckpointError, BackendUnavailable, EngineDead."""
    from service.api.app import create_app
    from service.compose import load
    from service.engine.async_engine import AsyncEngine
    from service.engine.errors import EngineDead
    from service.server import listen, make_server, url_of

    key = secrets.token_urlsafe(24)
    private = {"host": "127.0.0.1", "port": 0, "api_key": key, "ui": False, "drain_timeout_s": 0.0}
    settings = Settings.model_validate({**settings.model_dump(), **private})
    engine = AsyncEngine()
    with listen(settings.host, settings.port) as sock:
        server = make_server(create_app(engine, settings), engine, settings, sock)
        loop = asyncio.new_event_loop()
        ready: list[BaseException | None] = []
        settled = threading.Event()

        async def serve() -> None:
            serving = asyncio.ensure_future(server.serve(sockets=[sock]))
            try:
                await engine.wait_ready()
                ready.append(None)
            except EngineDead as error:
                ready.append(error.__cause__ or error)
            settled.set()
            await serving

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run, name="server", daemon=True)
        engine_log = logging.getLogger("service.engine.thread")
        engine_log.setLevel(logging.CRITICAL)  # why loading failed is raised here, and not to be said twice
        engine.start(lambda: load(settings))
        thread.start()
        try:
            settled.wait()
            if ready[0] is not None:
                raise ready[0]
            engine_log.setLevel(logging.NOTSET)
            yield Endpoint(url_of(sock), key)
        finally:
            engine.shutdown()  # which ends the server, too, also one whose model is still loading
            thread.join(STOP_S)


@contextmanager
def beside(arguments: Sequence[str], key: str | None) -> Iterator[Endpoint]:
    """Run `bitnet serve` with these arguments in a process of its own, which shares no interpreter lock with a client.

    `key`: the one that its settings ask for. If it does not come up, the command ends with its message and exit code.
    """
    ours = ["--host", "127.0.0.1", "--port", "0", "--no-ui", "--log-format", "text", "--log-level", "info"]
    command = [sys.executable, "-m", "service", "serve", *arguments, *ours]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            if " ready: http" in line:
                break
        else:
            last = log[-1].split("] ", 1)[-1].removeprefix("error: ").strip() if log else "the server ended"
            fail(last, process.wait() or EXIT_FAILED)
        # Whatever it still has to say must not fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Endpoint(line.split(" ready: ", 1)[1].split()[0], key)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
