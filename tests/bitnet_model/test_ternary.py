"""Ternarizing masters and checking packed bytes, at the edges a random checkpoint does not reach."""

from __future__ import annotations

import math

import pytest
import torch

from bitnet_model.ternary import SLICE_ELEMENTS, absmean, has_unused_code, is_finite, ternarize
from tools.checkpoint_weights import pack_rows, unpack_rows


def test_halves_round_to_even_and_large_weights_are_clamped() -> None:
    master = torch.tensor([[-9.0, -1.5, -0.75, -0.5, 0.0, 0.5, 0.75, 9.0]], dtype=torch.bfloat16).expand(4, 8)
    planes, scale = ternarize(master.contiguous(), 1.0)
    assert unpack_rows(planes)[0].tolist() == [-1, -1, -1, 0, 0, 0, 1, 1]
    assert scale == 1.0


def test_the_scale_is_the_mean_rounded_to_bf16() -> None:
    _, scale = ternarize(torch.ones(4, 4), 1.2345678)
    assert scale == torch.tensor(1.2345678).bfloat16().item()


@pytest.mark.parametrize("num_inputs", [4, 100, SLICE_ELEMENTS // 4 + 4])
@pytest.mark.parametrize("num_outputs", [4, 12])
def test_slices_do_not_show(num_outputs: int, num_inputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    master = torch.randn(num_outputs, num_inputs, generator=generator).bfloat16()
    mean = absmean(master)
    planes, _ = ternarize(master, mean)
    whole = (master.float() * (1.0 / torch.tensor(mean, dtype=torch.float32))).round().clamp(-1, 1).to(torch.int8)
    assert mean == pytest.approx(master.double().abs().mean().item(), rel=1e-12)
    assert torch.equal(planes, pack_rows(whole))


def test_the_unused_code_is_seen_in_exactly_the_bytes_that_hold_it() -> None:
    for byte in range(256):
        planes = torch.zeros(3, 7, dtype=torch.uint8)
        planes[2, 6] = byte
        assert has_unused_code(planes) is (3 in [(byte >> shift) & 3 for shift in (0, 2, 4, 6)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_value_that_is_not_finite_is_seen_at_the_end_of_a_large_tensor(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, SLICE_ELEMENTS, dtype=dtype)
    assert is_finite(tensor)
    tensor[-1, -1] = torch.nan
    assert not is_finite(tensor)
    assert math.isnan(absmean(tensor))
