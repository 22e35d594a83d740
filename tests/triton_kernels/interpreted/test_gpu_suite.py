from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.bench import Options
from benchmarks.gpu.sections import SECTIONS, in_this_process
from benchmarks.gpu_suite import run
from tools.make_checkpoint import write_checkpoint

SHAPE = {"layers": 1, "hidden": 64, "inter": 96, "heads": 2, "kv_heads": 1, "vocab": 512}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_gpu_suite_runs_through_at_toy_size(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "packed", "tiny", **SHAPE)
    options = Options(folder, "cpu", batches=(2,), context=8, prompt=4, repeat=1, streams=(1, 2))
    assert run(list(SECTIONS), options, in_this_process, tmp_path, "toy")
    (result,) = tmp_path.glob("gpu-toy-*.json")
    kept = json.loads(result.read_text())
    assert {row["section"] for row in kept["rows"]} == set(SECTIONS)
    assert all(row["ok"] is not False and row["value"] >= 0 for row in kept["rows"])
    assert [row["case"] for row in kept["rows"] if row["section"] == "checks" and row["ok"] is None] == []
