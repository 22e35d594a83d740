"""How a head's dimensions are held: whole where keys and values are bf16, in pairs where they are int8.

int8 keys and values come as int16, two dimensions of the head each, and everything with a head's dimensions is a tuple
of two then: those of even place and those of odd. Bytes would be moved one by one, by 1,109 instructions a turn of 32
keys where pairs take 726 (heads of 128, compiled by Triton 3.6 for sm_90). Elsewhere it is a tuple of one. Knows no
rows and no arithmetic of attention.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

import triton
import triton.language as tl

from triton_kernels.bf16 import high_low

BYTES_TO_BF16 = tl.constexpr("""{
    .reg .b32 odd, low, top, one;
    mov.b32 one, 0x3F803F80;
    lop3.b32 low, $2, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 top, $2, 0x00800080, 0xC300C300, 0xEA;
    fma.rn.bf16x2 $0, low, one, top;
    shr.u32 odd, $2, 8;
    lop3.b32 low, odd, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 top, odd, 0x00800080, 0xC300C300, 0xEA;
    fma.rn.bf16x2 $1, low, one, top;
}""")
"""Two int16 of two bytes each -> their lower bytes and their upper bytes as bf16: 128 + the lower seven bits, less 128
or 256 by the top bit, all of which bf16 holds exactly."""


@triton.jit
def load_page(page, at, d, mask, D: tl.constexpr, BF16: tl.constexpr):
    """Keys or values at token slots `at`, as exact bf16. What is masked is zero, whatever the slot holds."""
    x = tl.load(page + at * D + d, mask=mask, other=0)
    return x.to(tl.bfloat16) if BF16 else x.to(tl.float32)


@triton.jit
def load_pairs(page, at, i, D: tl.constexpr, HALF: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr):
    """int8 keys or values at token slots `at`: dimensions 2 i and 2 i + 1, as exact bf16.

    Nothing is masked but what lies past the head: an int8 is a finite number whatever its slot holds.
    """
    if 2 * HALF == D:
        x = tl.load(page + at * (D // 2) + i)
    else:
        x = tl.load(page + at * (D // 2) + i, mask=i < D // 2, other=0)
    if PTX:
        return tl.inline_asm_elementwise(
            BYTES_TO_BF16, "=r,=r,r", [x], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        wide = x.to(tl.int32)
        even, odd = (wide << 24) >> 24, wide >> 8
        if BF16:
            return even.to(tl.bfloat16), odd.to(tl.bfloat16)
        else:
            return even.to(tl.float32), odd.to(tl.float32)


@triton.jit
def no_values(ROWS: tl.constexpr, BLOCK_D: tl.constexpr, INT8: tl.constexpr):
    """Weighted values to begin with."""
    if INT8:
        zeros = tl.zeros([ROWS, BLOCK_D // 2], dtype=tl.float32)
        return zeros, zeros
    else:
        return (tl.zeros([ROWS, BLOCK_D], dtype=tl.float32),)


@triton.jit
def load_query(q, line, there, D: tl.constexpr, BLOCK_D: tl.constexpr, INT8: tl.constexpr, BF16: tl.constexpr):
    """Rows of q as high and low bf16 parts; of both halves where INT8."""
    if INT8:
        i = 2 * tl.arange(0, BLOCK_D // 2)
        at, mask = q + line[:, None] * D + i[None, :], there[:, None] & (i < D)[None, :]
        even_high, even_low = high_low(tl.load(at, mask=mask, other=0.0), BF16)
        odd_high, odd_low = high_low(tl.load(at + 1, mask=mask, other=0.0), BF16)
        return even_high, even_low, odd_high, odd_low
    else:
        d = tl.arange(0, BLOCK_D)
        cell = there[:, None] & (d < D)[None, :]
        return high_low(tl.load(q + line[:, None] * D + d[None, :], mask=cell, other=0.0), BF16)


@triton.jit
def divided(weighted, total, INT8: tl.constexpr):
    """Weighted values by the sum of their weights; what has seen no key stays zero."""
    divisor = tl.where(total == 0.0, 1.0, total)[:, None]
    first = tl.math.div_rn(weighted[0], divisor)
    if INT8:
        return first, tl.math.div_rn(weighted[1], divisor)
    else:
        return (first,)


@triton.jit
def store_values(to, weighted, mask, STEP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, INT8: tl.constexpr):
    """A head's D values to `to` [ROWS]: in their order with STEP 2, as they are held (even before odd) with STEP 1."""
    if INT8:
        i = tl.arange(0, BLOCK_D // 2)
        at, cell = to[:, None] + STEP * i[None, :], mask[:, None] & (i < D // 2)[None, :]
        tl.store(at, weighted[0], mask=cell)
        tl.store(at + (D // 2 if STEP == 1 else 1), weighted[1], mask=cell)
    else:
        d = tl.arange(0, BLOCK_D)
        tl.store(to[:, None] + d[None, :], weighted[0], mask=mask[:, None] & (d < D)[None, :])
