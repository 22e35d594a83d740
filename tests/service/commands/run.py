"""The console script as a user starts it: a process of its own, its output and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "service"]


def environment() -> dict[str, str]:
    """Wide plain output, and none of the caller's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("BITNET_")}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def bitnet(*arguments: object, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end, with `typed` as standard input. No output may hold a traceback."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        input=typed or "",
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(code: int, *arguments: object) -> str:
    """The one line of a command that cannot be carried out."""
    done = bitnet(*arguments)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return done.stderr
