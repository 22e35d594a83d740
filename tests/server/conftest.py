"""Every test of this group also checks that the server wrote no traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.compose import load
from service.engine.async_engine import AsyncEngine
from tests.server.live import Live
from tests.service.api.asgi import settings_of


@pytest.fixture(autouse=True)
def no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if record.exc_info or "Traceback" in record.getMessage()] == []


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A server over an engine that repeats what it is told."""
    with Live() as server:
        yield server


@pytest.fixture(scope="module")
def model(tiny_packed: Path) -> Iterator[Live]:
    """A server over a real (random, tiny) model."""
    settings = {"model": str(tiny_packed), "backend": "cpu", "n_threads": 2, "max_running": 16, "kv_tokens": 4096}
    engine = AsyncEngine()
    engine.start(lambda: load(settings_of(**settings)))
    with Live(settings, engine=engine) as server:
        yield server


@pytest.fixture(scope="module")
def demo() -> Iterator[Live]:
    """A server of the demo model, with every setting but the threads at its default."""
    settings = settings_of(n_threads=2)
    engine = AsyncEngine()
    engine.start(lambda: load(settings))
    with Live(engine=engine) as server:
        yield server
        server.at_rest()
