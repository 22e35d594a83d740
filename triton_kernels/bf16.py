"""bf16 numbers in a kernel, with the same meaning where there is bf16 arithmetic and where there is none.

Triton's interpreter computes on the raw bits of bf16 and stores by cutting off, so there (BF16 false) a bf16 number is
an fp32 number whose lower half is zero, rounded by its bits. Knows no kernel.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bf16_rounded(x):
    """x rounded to bf16 (half to even) but kept as fp32, by its bits: for devices without bf16 arithmetic."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)


@triton.jit
def store_bf16(at, x, mask, BF16: tl.constexpr):
    if BF16:
        tl.store(at, x.to(tl.bfloat16), mask=mask)
    else:
        high = (bf16_rounded(x).to(tl.int32, bitcast=True) >> 16).to(tl.int16)
        tl.store(at, high.to(tl.bfloat16, bitcast=True), mask=mask)


@triton.jit
def high_low(x, BF16: tl.constexpr):
    """x as a sum of two bf16 numbers, to about 16 bits (kept as fp32 where there is no bf16 arithmetic)."""
    if BF16:
        high = x.to(tl.bfloat16)
        return high, (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = bf16_rounded(x)
        return high, bf16_rounded(x - high)


@triton.jit
def product(a, b, total, BF16: tl.constexpr):
    """total + a @ b. Without bf16 arithmetic in fp64, where the order of the sum, unknown there, does not show."""
    if BF16:
        return tl.dot(a, b, total)
    else:
        exact = tl.dot(a.to(tl.float64), b.to(tl.float64), total.to(tl.float64), out_dtype=tl.float64)
        return exact.to(tl.float32)
