from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.bench import Options
from benchmarks.gpu.sections import SECTIONS, in_this_process
from benchmarks.gpu.steps import steps
from benchmarks.gpu_suite import run
from bitnet_model.checkpoint import load_model
from tests.triton_kernels.fake_capture import FakeCapture
from tools.make_checkpoint import write_checkpoint
from triton_kernels.device import open_device
from triton_kernels.wing import TritonWing

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


def test_rounds_are_timed_where_they_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", "packed", "tiny", **SHAPE)
    options = Options(folder, "cpu", batches=(2,), context=8, prompt=4, repeat=1, streams=(1,))
    wing = TritonWing(open_device(torch.device("cpu")), "a test", FakeCapture)
    recorded = load_model(folder, wing, head_dtype="bf16")
    monkeypatch.setattr(Options, "load", lambda self: recorded)
    cases = {figure.case: figure.value for figure in steps(options)}
    assert cases["bf16 cache, 8 rounds a call, batch 2"] > 0
    assert cases["bf16 cache, one row, 7 guesses that are right"] > 0
    assert "bf16 cache, one row, 15 guesses that are right" not in cases  # more than the context has room for
