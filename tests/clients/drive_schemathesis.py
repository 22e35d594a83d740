"""schemathesis: every route of /openapi.json with every check, as its schema says and as it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.generated import answers_as_documented
from tests.clients.served import KEY, Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One with little room, so that thousands of answers take seconds."""
    small = ("--n-ctx", "96", "--n-ctx-max", "128", "--kv-tokens", "2048")
    with Served(tmp_path_factory.mktemp("small") / "log", *small) as served:
        yield served


@pytest.mark.timeout(600)
def test_no_check_fails_on_any_route(server: Served) -> None:
    told = answers_as_documented(server.url, KEY, "--max-examples=20", timeout_s=590)
    print(told[told.index("API Operations") :])
