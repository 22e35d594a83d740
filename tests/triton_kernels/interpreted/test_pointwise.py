from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracle
from triton_kernels.device import open_device
from triton_kernels.pointwise import Quantized, embed, gate_quantize, quantize

CPU = open_device(torch.device("cpu"))
RNG = np.random.default_rng(5)


def random(*shape: int) -> oracle.F32:
    return (RNG.standard_normal(shape) * RNG.uniform(0.1, 30, (shape[0], 1))).astype(np.float32)


def check(q: Quantized, wanted: oracle.F64 | oracle.F32, exact: bool) -> None:
    """Codes and scales of `wanted`; against float64 a value within fp32 rounding of a half may go to either side."""
    width = wanted.shape[1]
    codes, scale = oracle.quantize(wanted)
    got = q.codes.numpy().astype(np.int64)
    assert not got[:, width:].any()
    np.testing.assert_array_equal(q.code_sum.numpy(), got.sum(1))
    if exact:
        np.testing.assert_array_equal(got[:, :width], codes)
        np.testing.assert_array_equal(q.scale.numpy(), scale)
        return
    np.testing.assert_allclose(q.scale.numpy(), scale, rtol=2e-6)
    exact_code = np.asarray(wanted, np.float64) * (127 / np.maximum(np.abs(wanted).max(1, keepdims=True), 1e-5))
    assert np.abs(got[:, :width] - exact_code).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (3, 31), (5, 100), (2, 640), (0, 8)])
def test_plain_quantization_equals_its_definition_bit_for_bit(num_tokens: int, width: int) -> None:
    x = random(max(1, num_tokens), width)[:num_tokens]
    q = quantize(torch.from_numpy(x), None, 0.0, CPU)
    assert q.num_values == width
    if num_tokens:
        check(q, x, exact=True)


def test_ties_go_to_the_even_code_and_a_dead_row_gives_zeros() -> None:
    x = np.zeros((4, 8), np.float32)
    x[0, :4] = [254, 127, 1, 3]
    x[1, :4] = [-2, 1, -1, 0.5]
    x[2, :2] = [1e-32, -3e-33]
    q = quantize(torch.from_numpy(x), None, 0.0, CPU)
    check(q, x, exact=True)
    assert q.codes[0, :4].tolist() == [127, 64, 0, 2]
    assert not q.codes[2:].any()


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 3), (3, 100), (2, 1100)])
def test_norm_then_quantization_is_the_definition_to_fp32_rounding(num_tokens: int, width: int) -> None:
    x, gain = random(num_tokens, width), RNG.standard_normal(width).astype(np.float32)
    gain[: width // 3] = 1e-32
    q = quantize(torch.from_numpy(x), torch.from_numpy(gain), 1e-5, CPU)
    check(q, oracle.rms_norm(x, gain, 1e-5), exact=False)


@pytest.mark.parametrize("act", ["relu2", "silu"])
@pytest.mark.parametrize("normed", [True, False])
def test_gate_then_norm_then_quantization_is_the_definition(act: str, normed: bool) -> None:
    x, gain = random(3, 2 * 91), RNG.standard_normal(91).astype(np.float32)
    q = gate_quantize(torch.from_numpy(x), torch.from_numpy(gain) if normed else None, 1e-5, act, CPU)
    y = oracle.gate(x, act)
    check(q, oracle.rms_norm(y, gain, 1e-5) if normed else y, exact=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_visible_in_their_row_alone(bad: float) -> None:
    x, gain = random(3, 40), np.ones(40, np.float32)
    x[1, 7] = bad
    gate_up = np.concatenate([x, x], 1)
    for q in (
        quantize(torch.from_numpy(x), None, 0.0, CPU),
        quantize(torch.from_numpy(x), torch.from_numpy(gain), 1e-5, CPU),
        gate_quantize(torch.from_numpy(gate_up), torch.from_numpy(gain), 1e-5, "silu", CPU),
    ):
        assert [bool(finite) for finite in q.scale.isfinite()] == [True, bad == -np.inf and q.num_values == 0, True]


def test_embedding_rows_are_exact_for_both_dtypes() -> None:
    ids = torch.tensor([3, 0, 6, 3])
    for dtype in (torch.bfloat16, torch.float32):
        table = torch.randn(7, 1056).to(dtype)
        assert torch.equal(embed(table, ids, 1030, CPU), table[ids, :1030].float())
    assert embed(table, ids[:0], 1030, CPU).shape == (0, 1030)


def test_a_wrong_shape_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"a gain of 8, not \[4\]"):
        quantize(torch.zeros(2, 8), torch.ones(4), 1e-5, CPU)
    with pytest.raises(ValueError, match=r"1 \.\. 65536\], not \[1, 70000\]"):
        quantize(torch.zeros(1, 70000), None, 0.0, CPU)
    with pytest.raises(ValueError, match="even number of columns, not 7"):
        gate_quantize(torch.zeros(1, 7), None, 1e-5, "silu", CPU)
    with pytest.raises(ValueError, match="relu2 or silu, not 'gelu'"):
        gate_quantize(torch.zeros(1, 8), None, 1e-5, "gelu", CPU)
