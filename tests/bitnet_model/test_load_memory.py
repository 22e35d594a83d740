"""The loader's own peak: below 1.3 times the file, whatever the format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.make_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("fmt", "layers"), [("packed", 5), ("master", 1)])
def test_loading_peaks_below_1_3_times_the_file(tiny_packed: Path, tmp_path: Path, fmt: str, layers: int) -> None:
    sizes = {"hidden": 1024, "inter": 2816, "vocab": 512}
    folder = write_checkpoint(tmp_path / fmt, fmt, "small", layers=layers, **sizes)
    command = [sys.executable, "-m", "tests.bitnet_model.measure_load", str(tiny_packed), str(folder)]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    peak, kept = map(int, printed.split())
    file_bytes = (folder / "model.safetensors").stat().st_size
    assert file_bytes > 12e6
    assert 0.9 * kept < peak < 1.3 * file_bytes
