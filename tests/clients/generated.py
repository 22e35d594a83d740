"""schemathesis as a process of its own: requests generated from the OpenAPI document, every check on every route."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.clients.served import ROOT


def answers_as_documented(url: str, key: str, *options: str, timeout_s: float) -> str:
    """Fail the test that calls this unless every check holds -> what it wrote."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "tests/clients/schemathesis.toml"]
    command += ["run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}"]
    command += ["--checks=all", "--seed=1", "--no-color", "--suppress-health-check=all", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_REPORT": "false"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    assert re.search(r"Selected: (\d+)/\1\n\s+Tested: \1\n", done.stdout), done.stdout
    return done.stdout
