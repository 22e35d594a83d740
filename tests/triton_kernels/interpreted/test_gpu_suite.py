from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import triton_kernels
from benchmarks.gpu_suite import SECTIONS, Bench, run
from bitnet_model.checkpoint import load_model
from tools.make_checkpoint import write_checkpoint


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_gpu_suite_runs_through_at_toy_size(tmp_path: Path) -> None:
    shape = {"layers": 1, "hidden": 64, "inter": 96, "heads": 2, "kv_heads": 1, "vocab": 512}
    folder = write_checkpoint(tmp_path / "model", "packed", "tiny", **shape)
    model = load_model(folder, triton_kernels.load("cpu"), head_dtype="bf16")
    bench = Bench(model, folder, torch.device("cpu"), context=8, prompt=4, batches=(2,), repeat=1)
    assert run(bench, ["checks", *SECTIONS], tmp_path)
    for section in ("checks", "limits", *SECTIONS):
        assert json.loads((tmp_path / f"gpu_{section}.json").read_text())["rows"]
