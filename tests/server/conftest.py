"""Every test of this group also checks that the server wrote no traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.server.live import Live


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
