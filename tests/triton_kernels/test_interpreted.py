from __future__ import annotations

import subprocess
from typing import IO

import pytest


@pytest.mark.timeout(600)
def test_every_kernel_is_right_in_the_interpreter(interpreted_run: tuple[subprocess.Popen[str], IO[str]]) -> None:
    process, output = interpreted_run
    status = process.wait()
    output.seek(0)
    said = output.read()
    assert status == 0, said
    assert "[100%]" in said
