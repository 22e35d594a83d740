"""From packed bytes to outputs: the arithmetic that every form of the ternary linear shares.

Weights are the left operand and are decoded in place by one mask (`pack.py`). Integer sums do not depend on the form,
the tile or the split of K. Knows no grid: which program does what is the forms' business.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized


@triton.jit
def ternary_sum(plane_sum, code_sum, PLANE: tl.constexpr):
    """The integer dot product behind a plane's masked sum. Planes 0 to 2 hold ternary + 1, plane 3 the ternary."""
    if PLANE < 3:
        return (plane_sum >> (2 * PLANE)) - code_sum
    else:
        return plane_sum >> 6


@triton.jit
def rescale(total, token_scale, row_scale, residual, at, mask, HAS_RESIDUAL: tl.constexpr):
    value = total.to(tl.float32) * (token_scale * row_scale)
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask=mask, other=0.0)
    return value


@triton.jit
def plane_sums(
    planes, codes, rp, rt, T, first_k, K: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The masked sums [BLOCK_P, BLOCK_T] of the four planes of packed rows rp and tokens rt over K // PARTS of K.

    Tokens from T on are zeros and are not read.
    """
    x_at = codes + rt.to(tl.int64)[None, :] * K
    w_at = planes + rp.to(tl.int64)[:, None] * K
    sum0 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    sum1 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    sum2 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    sum3 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    for i in range(K // PARTS // BLOCK_K):
        rk = first_k + i * BLOCK_K + tl.arange(0, BLOCK_K)
        w = tl.load(w_at + rk[None, :])
        x = tl.load(x_at + rk[:, None], mask=(rt < T)[None, :], other=0)
        sum0 = tl.dot(w & 0x03, x, sum0, out_dtype=tl.int32)
        sum1 = tl.dot(w & 0x0C, x, sum1, out_dtype=tl.int32)
        sum2 = tl.dot(w & 0x30, x, sum2, out_dtype=tl.int32)
        sum3 = tl.dot(w & -64, x, sum3, out_dtype=tl.int32)
    return sum0, sum1, sum2, sum3


@triton.jit
def plane_total(sum0, sum1, sum2, sum3, code_sum, PLANE: tl.constexpr):
    """The integer dot products of one plane [BLOCK_T, BLOCK_P], transposed: neighbouring lanes store neighbours."""
    if PLANE == 0:
        return ternary_sum(tl.trans(sum0), code_sum, 0)
    elif PLANE == 1:
        return ternary_sum(tl.trans(sum1), code_sum, 1)
    elif PLANE == 2:
        return ternary_sum(tl.trans(sum2), code_sum, 2)
    else:
        return ternary_sum(tl.trans(sum3), code_sum, 3)


def scaling(q: Quantized, w: Weights, residual: Tensor | None, out: Tensor) -> dict[str, Any]:
    """The arguments that every form shares. Without a residual any f32 pointer stands in for it, unread."""
    return {
        "token_scale": q.scale,
        "row_scale": w.row_scale,
        "first": w.first,
        "step": w.step,
        "residual": out if residual is None else residual,
        "P": w.num_packed,
        "HAS_RESIDUAL": residual is not None,
    }
