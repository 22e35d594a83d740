"""The interpreted tests run in a process of their own, beside the compilations of this one, and are waited for last."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

FOLDER = Path(__file__).parent / "interpreted"
Run = tuple[subprocess.Popen[str], IO[str]]
RUN = pytest.StashKey[Run]()


def waits(item: pytest.Item) -> bool:
    return item.path.name == "test_interpreted.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=waits)


def pytest_collection_finish(session: pytest.Session) -> None:
    """TRITON_INTERPRET acts when a kernel is decorated, so it is set before anything is imported there."""
    if any(waits(item) for item in session.items) and not session.config.option.collectonly:
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the test that waits reads it)
        command = [sys.executable, "-m", "pytest", "-x", str(FOLDER)]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        process = subprocess.Popen(
            command, cwd=FOLDER.parents[2], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        session.config.stash[RUN] = (process, output)


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is not None and run[0].poll() is None:
        run[0].kill()
        run[0].wait()


@pytest.fixture
def interpreted_run(request: pytest.FixtureRequest) -> Iterator[Run]:
    process, output = request.config.stash[RUN]
    yield process, output
    output.close()
