"""Norm, quantize, gate, embed and RoPE: the canonical formulas, and rows that know nothing of each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cpu_fallback.linear import Form, Quantized
from cpu_fallback.wing import TorchWing
from tests import oracle
from tests.cpu_fallback.wings import FORMS, normal, wing

SHAPES = [(1, 4), (2, 20), (3, 100), (65, 260), (5, 6912)]


def assert_close_codes(q: Quantized, values: np.ndarray) -> None:
    """Codes and scales of the float64 `values`, but for codes that lie at a rounding boundary."""
    absmax = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-5)
    exact = values * (127 / absmax)
    assert np.abs(q.codes.numpy() - exact).max() < 0.5 + 1e-3
    np.testing.assert_allclose(q.scale.numpy(), absmax / 127, rtol=2e-6)


def equal(a: Quantized, b: Quantized) -> bool:
    return torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale)


def rows_alone(verb: object, x: Tensor) -> Quantized:
    parts = [verb(x[i : i + 1]) for i in range(len(x))]  # type: ignore[operator]
    return Quantized(torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("T", "K"), SHAPES)
def test_plain_quantization_is_the_fp32_formula_bit_for_bit(T: int, K: int, form: Form) -> None:
    x = normal(T, T, K) * 10 ** normal(T + 1, T, 1)
    x[-1, 0] = x[-1].abs().max() / 2  # 63.5, a tie
    codes, scale = oracle.quantize(x.numpy())
    with wing(1, form) as ops:
        q = ops.quantize(x)
    assert np.array_equal(q.codes.numpy(), codes)
    assert np.array_equal(q.scale[:, 0].numpy(), scale)


@pytest.mark.parametrize("form", FORMS)
def test_ties_go_to_even_and_zero_and_tiny_rows_stay_small(form: Form) -> None:
    x = torch.zeros(4, 8)
    x[0] = torch.tensor([254.0, 1.0, 3.0, 5.0, -1.0, -3.0, -5.0, 0.0])
    x[2], x[3] = 1e-6, torch.tensor([3e38, -3e38] * 4)
    with wing(1, form) as ops:
        q = ops.quantize(x)
    assert q.codes[0].tolist() == [127, 0, 2, 2, 0, -2, -2, 0]
    assert q.codes[1].tolist() == [0] * 8
    assert q.codes[2].tolist() == [13] * 8
    assert q.codes[3].tolist() == [127, -127] * 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("T", "H"), SHAPES)
def test_norm_then_quantize_meets_float64(T: int, H: int, form: Form) -> None:
    x, gain = normal(T, T, H) * 3, normal(T + 1, H)
    gain[0], gain[1] = 1e-32, -2.0
    with wing(1, form) as ops:
        q = ops.norm_quantize(x, gain, 1e-5)
    assert_close_codes(q, oracle.rms_norm(x.numpy(), gain.numpy(), 1e-5))


def test_norm_then_quantize_is_the_canonical_formula_bit_for_bit() -> None:
    x, gain = normal(1, 7, 2560), normal(2, 2560)
    with wing(2) as ops:
        q = ops.norm_quantize(x, gain, 1e-5)
    y = (x * (1 / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5))) * gain
    codes, scale = oracle.quantize(y.numpy())
    assert np.array_equal(q.codes.numpy(), codes)
    assert np.array_equal(q.scale[:, 0].numpy(), scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ["relu2", "silu"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("T", "F"), SHAPES)
def test_gate_norm_quantize_meets_float64(T: int, F: int, act: str, normed: bool, form: Form) -> None:
    gate_up, gain = normal(T, T, 2 * F) * 2, normal(T + 1, F)
    values = oracle.gate(gate_up.numpy(), act)
    with wing(1, form) as ops:
        q = ops.gate_norm_quantize(gate_up, gain if normed else None, 1e-5, act)  # type: ignore[arg-type]
    assert_close_codes(q, oracle.rms_norm(values, gain.numpy(), 1e-5) if normed else values)


def test_the_gate_keeps_values_that_overflow_half_precision() -> None:
    with wing() as ops:
        q = ops.gate_norm_quantize(torch.full((1, 8), 1000.0), torch.ones(4), 1e-5, "relu2")
        assert ops.gate_norm_quantize(torch.full((1, 8), -200.0), None, 0.0, "silu").codes.tolist() == [[0] * 4]
    assert q.codes.tolist() == [[127] * 4]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [4, 36, 1000, 33000])
def test_a_row_is_the_same_alone_in_company_strided_and_with_more_threads(width: int, form: Form) -> None:
    x, gain = normal(1, 9, 2 * width), normal(2, width)
    half = x[:, width:]
    with wing(1, form) as one, wing(2, form) as two:

        def verbs(ops: TorchWing) -> list[tuple[object, Tensor]]:
            return [
                (ops.quantize, half),
                (lambda y: ops.norm_quantize(y, gain, 1e-6), half),
                (lambda y: ops.gate_norm_quantize(y, gain, 1e-6, "relu2"), x),
                (lambda y: ops.gate_norm_quantize(y, gain, 1e-6, "silu"), x),
            ]

        for (verb, data), (threaded, _) in zip(verbs(one), verbs(two), strict=True):
            alone = rows_alone(verb, data.contiguous())
            assert equal(alone, verb(data))  # type: ignore[operator]
            assert equal(alone, threaded(data))  # type: ignore[operator]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_stay_visible_in_their_row_only(bad: float, form: Form) -> None:
    x, gain = normal(1, 3, 16), normal(2, 8)
    with wing(1, form) as ops:
        for verb, data in (
            (ops.quantize, x),
            (lambda y: ops.norm_quantize(y, normal(2, 16), 1e-5), x),
            (lambda y: ops.gate_norm_quantize(y, gain, 1e-5, "silu"), x),
        ):
            clean = verb(data)
            dirty = data.clone()
            dirty[1, 12] = bad
            q = verb(dirty)
            assert not bool(q.scale[1].isfinite())
            assert torch.equal(q.codes[[0, 2]], clean.codes[[0, 2]])
            assert torch.equal(q.scale[[0, 2]], clean.scale[[0, 2]])


def test_inputs_are_not_modified() -> None:
    x, gain = normal(1, 3, 16), normal(2, 16)
    before = x.clone()
    with wing() as ops:
        ops.quantize(x)
        ops.norm_quantize(x, gain, 1e-5)
        ops.gate_norm_quantize(x, gain[:8], 1e-5, "relu2")
        ops.gate_norm_quantize(x, None, 1e-5, "silu")
    assert torch.equal(x, before)


def test_a_gain_of_another_width_and_an_unknown_activation_are_refused() -> None:
    with wing() as ops:
        with pytest.raises(ValueError, match="width 16 do not fit a gain of 8"):
            ops.norm_quantize(normal(1, 2, 16), normal(2, 8), 1e-5)
        with pytest.raises(ValueError, match="gelu"):
            ops.gate_norm_quantize(normal(1, 2, 16), None, 1e-5, "gelu")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_embedding_is_looked_up_exactly_and_outlives_its_input(dtype: torch.dtype) -> None:
    weight = normal(1, 11, 8).to(dtype)
    expected = weight.float()[[3, 3, 10]]
    with wing() as ops:
        table = ops.pack_table(weight, embedding=True, head_dtype=None)
        weight.zero_()
        assert torch.equal(ops.embed(table, torch.tensor([3, 3, 10])), expected)
        assert ops.memory_bytes(table) == weight.nbytes


@pytest.mark.parametrize(("Hq", "Hkv", "D"), [(4, 2, 16), (3, 1, 100), (2, 2, 2)])
def test_rope_turns_queries_and_keys_and_leaves_values(Hq: int, Hkv: int, D: int) -> None:
    positions = [0, 1, 63, 64, 4095]
    qkv = normal(1, 5, (Hq + 2 * Hkv) * D)
    heads = qkv.view(5, -1, D)
    slots = torch.tensor([7, 2, 0, 5, 3])
    with wing() as ops:
        tables = ops.rope_tables(D, 5e5, None, 4096)
        cache = ops.new_cache(2, 2, 4, Hkv, D, "bf16")
        q = ops.rope_write_kv(qkv, torch.tensor(positions), tables, cache, 1, slots)
    turned = oracle.rope(heads[:, : Hq + Hkv].numpy(), positions, 5e5)
    np.testing.assert_allclose(q.numpy(), turned[:, :Hq], atol=2e-3)
    np.testing.assert_allclose(cache.keys[1].rows[slots].float().numpy(), turned[:, Hq:], atol=2e-2, rtol=1e-2)
    assert torch.equal(cache.values[1].rows[slots], heads[:, Hq + Hkv :].bfloat16())
    assert not bool(cache.keys[0].rows.any())


def test_rope_is_the_same_alone_and_in_company() -> None:
    qkv, positions = normal(1, 9, 6 * 20), torch.arange(100, 109)
    with wing() as ops:
        tables = ops.rope_tables(20, 1e4, None, 128)
        one, many = (ops.new_cache(1, 1, 16, 1, 20, "bf16") for _ in range(2))
        slots = torch.arange(9)
        q = ops.rope_write_kv(qkv, positions, tables, many, 0, slots)
        for i in range(9):
            part = slice(i, i + 1)
            assert torch.equal(ops.rope_write_kv(qkv[part], positions[part], tables, one, 0, slots[part]), q[part])
    assert torch.equal(one.keys[0].rows, many.keys[0].rows)


def test_rope_refuses_what_it_does_not_serve() -> None:
    with wing() as ops:
        with pytest.raises(ValueError, match="plain RoPE only"):
            ops.rope_tables(8, 1e4, {"rope_type": "yarn"}, 16)
        with pytest.raises(ValueError, match="got 7"):
            ops.rope_tables(7, 1e4, None, 16)
