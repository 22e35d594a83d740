"""Choosing a wing: what was asked for by name runs or says why not; auto runs and says what it took."""

from __future__ import annotations

import logging
import platform

import pytest

import triton_kernels
from bitnet_model.ops import BackendUnavailable, load_ops


@pytest.mark.skipif(triton_kernels.unavailable_reason() is None, reason="this machine has a GPU that will do")
def test_auto_takes_the_cpu_wing_where_there_is_no_gpu_and_logs_what_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bitnet_model.ops"):
        ops = load_ops("auto", threads=1)
    assert ops.name == "cpu"
    assert f"auto: backend triton: {triton_kernels.unavailable_reason()}" in caplog.text
    assert f"isa {ops.describe()['isa']}" in caplog.text
    ops.close()


@pytest.mark.skipif(triton_kernels.unavailable_reason() is None, reason="this machine has a GPU that will do")
def test_triton_by_name_without_a_gpu_is_unavailable_and_names_the_cure() -> None:
    with pytest.raises(BackendUnavailable, match=r"sees no GPU.*--backend cpu"):
        load_ops("triton", threads=1)


def test_an_instruction_set_this_machine_cannot_have_is_unavailable() -> None:
    foreign = "avx2" if platform.machine() in ("aarch64", "arm64") else "neon_dot"
    with pytest.raises(BackendUnavailable, match=foreign):
        load_ops("cpu", isa=foreign, threads=1)


def test_unknown_names_are_a_usage_error() -> None:
    with pytest.raises(ValueError, match="backend must be"):
        load_ops("cuda", threads=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cpu_isa must be"):
        load_ops("cpu", isa="sse2", threads=1)
