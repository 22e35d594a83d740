"""The npm clients: openai, and Vercel's ai with @ai-sdk/openai-compatible. Their cases are in npm/*.mjs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.served import KEY, Served

NPM = Path(__file__).parent / "npm"
NODE = Path(sys.executable).with_name("node")


def cases(client: str) -> list[tuple[str, str]]:
    """The cases that a file of npm/ exports."""
    return [(client, name) for name in re.findall(r"^  async (\w+)\(\) \{$", (NPM / f"{client}.mjs").read_text(), re.M)]


@pytest.mark.parametrize(("client", "case"), [*cases("openai"), *cases("ai")])
def test_npm(server: Served, client: str, case: str) -> None:
    environment = {**os.environ, "BASE_URL": server.v1, "KEY": KEY}
    command = [str(NODE), "run.mjs", client, case]
    done = subprocess.run(command, cwd=NPM, env=environment, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        pytest.fail(f"{client}.mjs, case '{case}':\n{done.stdout}{done.stderr}", pytrace=False)
