"""Servers over an engine that repeats what it is told, for the commands that talk to one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live import Live
from tests.service.engine.fakes import endless


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with Live(n_ctx=2048, num_blocks=512) as server:
        yield server


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """10 ms a token, and answers without end."""
    with Live(n_ctx=2048, num_blocks=512, step_s=0.01, choose=endless) as server:
        yield server
