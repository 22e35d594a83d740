"""schemathesis: every route of /openapi.json with every check, as its schema says and as it does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.clients.served import KEY, ROOT, Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One with little room, so that thousands of answers take seconds."""
    small = ("--n-ctx", "96", "--n-ctx-max", "128", "--kv-tokens", "2048")
    with Served(tmp_path_factory.mktemp("small") / "log", *small) as served:
        yield served


@pytest.mark.timeout(600)
def test_no_check_fails_on_any_route(server: Served) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "tests/clients/schemathesis.toml"]
    command += ["run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
    command += ["--checks=all", "--max-examples=20", "--seed=1", "--no-color", "--suppress-health-check=all"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    tested = re.search(r"Selected: (\d+)/\1\n\s+Tested: \1\n", done.stdout)
    assert tested, done.stdout
    print(done.stdout[done.stdout.index("API Operations") :])
