from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import triton_kernels
from triton_kernels.device import Found, open_device, refusal
from triton_kernels.wing import OVERLAP_TOKENS, TritonWing

H100 = Found(has_triton=True, device_name="NVIDIA H100", capability=(9, 0), is_amd=False)


def test_a_new_enough_gpu_with_triton_is_taken() -> None:
    for found in (
        H100,
        Found(has_triton=True, device_name="NVIDIA A100", capability=(8, 0), is_amd=False),
        Found(has_triton=True, device_name="AMD Instinct MI300X", capability=(9, 4), is_amd=True),
    ):
        assert refusal(found) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Found(True, "", (0, 0), False), "sees no GPU: install a CUDA build of torch"),
        (Found(True, "Tesla T4", (7, 5), False), "Tesla T4 has compute capability 7.5 and the GPU kernels need 8.0"),
        (Found(False, "NVIDIA H100", (9, 0), False), "pip install triton"),
    ],
)
def test_a_refusal_is_one_line_with_the_cure_and_the_cpu_wing(found: Found, said: str) -> None:
    reason = refusal(found)
    assert reason is not None
    assert said in reason
    assert "--backend cpu" in reason
    assert "\n" not in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_loading_fails_with_that_line() -> None:
    with pytest.raises(RuntimeError, match="sees no GPU"):
        triton_kernels.load()


def test_importing_the_package_loads_neither_triton_nor_torch() -> None:
    code = "import sys, triton_kernels; sys.exit('triton' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_launches_do_not_overlap_where_the_hardware_cannot() -> None:
    assert not open_device(torch.device("cpu"), pdl=True).pdl


def test_launches_overlap_in_steps_of_few_tokens_only() -> None:
    device = replace(open_device(torch.device("cpu")), pdl=True)
    wing = TritonWing(device, "a test")
    for num_tokens, overlaps in ((1, True), (OVERLAP_TOKENS, True), (OVERLAP_TOKENS + 1, False)):
        with wing.launching(num_tokens):
            assert wing.opened.pdl is overlaps
        assert wing.opened is device
    with pytest.raises(RuntimeError), wing.launching(64):
        raise RuntimeError
    assert wing.opened is device
