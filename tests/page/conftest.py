"""One Chromium for the whole group, and servers over an engine that repeats what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from service.server import make_server
from tests.page.browser import Browser, find_chromium
from tests.server.live import Live


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed here; on Debian: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


def talker(prefix: str = "", **options: Any) -> Live:
    """A server with room for long answers; under `prefix` as behind a proxy that keeps the path."""
    live = Live(**{"n_ctx": 4096, "num_blocks": 1024, **options})
    if prefix:
        app: Any = Starlette(routes=[Mount(prefix, live.app)])
        live.server = make_server(app, live.engine, live.settings, live.sock)
    return live


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    with talker() as server:
        yield server


@pytest.fixture(scope="session")
def slow() -> Iterator[Live]:
    """5 ms a token."""
    with talker(step_s=0.005) as server:
        yield server
