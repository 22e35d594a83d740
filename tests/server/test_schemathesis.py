"""schemathesis over the document: a small part of what `make test-clients` runs, every check on every route."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.compose import load
from service.engine.async_engine import AsyncEngine
from tests.clients.generated import answers_as_documented
from tests.server.live import Live
from tests.service.api.asgi import settings_of

KEY = "k"


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    """A server of the demo model with little room, so that answers take no time; it asks for a key."""
    settings = {"n_threads": 2, "n_ctx": 96, "n_ctx_max": 128, "kv_tokens": 2048, "api_key": KEY}
    engine = AsyncEngine()
    engine.start(lambda: load(settings_of(**settings)))
    with Live(settings, engine=engine) as server:
        yield server


def test_what_is_generated_from_the_document_is_answered_as_it_says(small: Live) -> None:
    answers_as_documented(small.url, KEY, "--phases=fuzzing", "--max-examples=4", timeout_s=110)
    small.at_rest()
