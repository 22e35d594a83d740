"""One application over a fake engine for all tests that do not disturb it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.api.asgi import Client


@pytest.fixture(scope="session")
def shared_client() -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def client(shared_client: Client) -> Iterator[Client]:
    """The shared client; what a test opened must be closed again when it ends."""
    yield shared_client
    shared_client.until(lambda: shared_client.engine.stats()["open"] == 0)
    shared_client.until(lambda: shared_client.engine.stats()["blocks_used"] == 0)
