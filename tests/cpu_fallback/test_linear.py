"""The ternary linear: both forms of integer product equal the oracle bit for bit, whatever the company and threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpu_fallback import linear as linear_module
from cpu_fallback.linear import Form
from tests import oracle
from tests.cpu_fallback.wings import FORMS, normal, segment, ternary, wing

# N/4 odd, K = 4, K no power of two, unequal segments, more than one block of rows.
SHAPES = [((4,), 4), ((12,), 20), ((20, 4, 4), 100), ((36, 12), 260), ((28,), 1032), ((360, 4), 2560)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 2, 3, 5, 16, 65])
@pytest.mark.parametrize(("rows", "K"), SHAPES)
def test_every_shape_equals_the_oracle_bit_for_bit(rows: tuple[int, ...], K: int, T: int, form: Form) -> None:
    segments = [segment(10 + N, N, K) for N in rows]
    x, residual = normal(T, T, K), normal(T + 1, T, sum(rows))
    weights = np.concatenate([ternary(10 + N, N, K) for N in rows])
    row_scale = torch.cat([scale for _, scale in segments]).numpy()
    codes, scale = oracle.quantize(x.numpy())
    with wing(2, form) as ops:
        q, w = ops.quantize(x), ops.pack(segments)
        out, added = ops.ternary_linear(q, w), ops.ternary_linear(q, w, residual)
    assert np.array_equal(out.numpy(), oracle.linear(codes, scale, weights, row_scale))
    assert np.array_equal(added.numpy(), oracle.linear(codes, scale, weights, row_scale, residual.numpy()))


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_sums_are_exact(form: Form) -> None:
    K = 23040
    x = torch.ones(3, K)
    x[1] = -1.0
    x[2, ::3] = 0.0
    planes = torch.from_numpy(oracle.plane_bytes(np.ones((4, K), np.int64)))
    with wing(1, form) as ops:
        out = ops.ternary_linear(ops.quantize(x), ops.pack([(planes, torch.full((4,), 127.0))]))
    assert out[:, 0].tolist() == [127.0 * K, -127.0 * K, 127.0 * (K - K // 3)]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_the_same_alone_in_company_and_with_more_threads(form: Form) -> None:
    x, weights = normal(3, 33, 520), [segment(4, 700, 520)]
    with wing(1, form) as ops:
        w = ops.pack(weights)
        alone = torch.cat([ops.ternary_linear(ops.quantize(x[i : i + 1]), w) for i in range(33)])
        together = ops.ternary_linear(ops.quantize(x), w)
        ops.set_threads(3)
        threaded = ops.ternary_linear(ops.quantize(x), w)
    assert torch.equal(alone, together)
    assert torch.equal(alone, threaded)


def test_a_product_large_enough_to_be_shared_out_is_the_same() -> None:
    x, weights = normal(3, 64, 520), [segment(4, 1100, 520)]
    assert x.numel() * 1100 > linear_module.PARALLEL_PRODUCTS
    with wing(1) as one, wing(2) as two:
        q, w = one.quantize(x), one.pack(weights)
        assert torch.equal(one.ternary_linear(q, w, normal(5, 64, 1100)), two.ternary_linear(q, w, normal(5, 64, 1100)))


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_row_stays_nan_and_touches_no_other(form: Form) -> None:
    x = normal(3, 5, 64)
    with wing(1, form) as ops:
        w = ops.pack([segment(4, 12, 64)])
        clean = ops.ternary_linear(ops.quantize(x), w)
        x[1, 7], x[3, 2] = torch.nan, torch.inf
        out = ops.ternary_linear(ops.quantize(x), w)
    assert torch.equal(out[[0, 2, 4]], clean[[0, 2, 4]])
    assert not bool(out[[1, 3]].isfinite().any())


def test_shapes_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with wing() as ops:
        w = ops.pack([segment(4, 12, 64)])
        with pytest.raises(ValueError, match=r"\[3, 60\] do not fit weights \[12, 64\]"):
            ops.ternary_linear(ops.quantize(normal(1, 3, 60)), w)
        with pytest.raises(ValueError, match=r"residual \[3, 8\]"):
            ops.ternary_linear(ops.quantize(normal(1, 3, 64)), w, normal(1, 3, 8))


def test_no_tokens_give_no_rows() -> None:
    with wing() as ops:
        assert ops.ternary_linear(ops.quantize(torch.empty(0, 8)), ops.pack([segment(1, 4, 8)])).shape == (0, 4)
