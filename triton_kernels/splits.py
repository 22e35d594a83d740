"""One tile of a query's keys, and how splits are put together: the arithmetic of attention, on registers.

Each split is one online softmax over tiles of a fixed size, in order; splits are merged in order of position. The
operations on one query's numbers are the same whichever program does them. Scores and softmax are fp32; tensor cores
take bf16, so fp32 operands (q, probabilities) go in as a high and a low bf16 part: two products with exact keys and
values instead of one with rounded operands. Knows no rows and no batch.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

import triton
import triton.language as tl

from triton_kernels.bf16 import high_low, product
from triton_kernels.pairs import load_page, load_pairs


@triton.jit
def next_keys(
    start, end, most, total, weighted, q, position, table, keys, values, key_scale, value_scale, kv_head, scale,
    HKV: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, INT8: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """One turn of an online softmax, over the keys start .. start + KEYS - 1 before `end`.

    The running maximum, sum and weighted values begin a split as -inf, 0 and 0.
    """
    d = tl.arange(0, BLOCK_D)
    half = tl.arange(0, BLOCK_D // 2)
    n = start + tl.arange(0, KEYS)
    here = n < end
    if BLOCK_TOKENS % KEYS == 0:
        # the whole tile is in one block: one lookup, and constant offsets from one address
        block = tl.load(table + start // BLOCK_TOKENS)
        inner = start % BLOCK_TOKENS + tl.arange(0, KEYS)
    else:
        block = tl.load(table + n // BLOCK_TOKENS, mask=here, other=0)
        inner = n % BLOCK_TOKENS
    at = (block.to(tl.int64) * HKV + kv_head) * BLOCK_TOKENS + inner
    score = tl.zeros([ROWS, KEYS], tl.float32)
    if INT8:
        even, odd = load_pairs(keys, at[None, :], half[:, None], D, BLOCK_D // 2, BF16, PTX)
        score = product(q[1], even, product(q[0], even, score, BF16), BF16)
        score = product(q[3], odd, product(q[2], odd, score, BF16), BF16) * scale
        score *= tl.load(key_scale + at, mask=here, other=0.0)[None, :]
    else:
        k = load_page(keys, at[None, :], d[:, None], here[None, :] & (d < D)[:, None], D, BF16)
        score = product(q[1], k, product(q[0], k, score, BF16), BF16) * scale
    score = tl.where(n[None, :] <= position[:, None], score, float("-inf"))
    highest = tl.maximum(most, tl.max(score, axis=1))
    # a row that has seen no key yet: any finite number, so that -inf minus it is -inf and not NaN
    origin = tl.where(highest == float("-inf"), 0.0, highest)
    shrink = tl.exp2(most - origin)
    p = tl.exp2(score - origin[:, None])
    total = total * shrink + tl.sum(p, axis=1)
    if INT8:
        p *= tl.load(value_scale + at, mask=here, other=0.0)[None, :]
    p_high, p_low = high_low(p, BF16)
    if INT8:
        even, odd = load_pairs(values, at[:, None], half[None, :], D, BLOCK_D // 2, BF16, PTX)
        of_even = product(p_low, even, product(p_high, even, weighted[0] * shrink[:, None], BF16), BF16)
        of_odd = product(p_low, odd, product(p_high, odd, weighted[1] * shrink[:, None], BF16), BF16)
        return highest, total, (of_even, of_odd)
    else:
        v = load_page(values, at[:, None], d[None, :], here[:, None] & (d < D)[None, :], D, BF16)
        return highest, total, (product(p_low, v, product(p_high, v, weighted[0] * shrink[:, None], BF16), BF16),)


@triton.jit
def merge(most, total, weighted, next_most, next_total, next_weighted):
    """Adds the next split. One without a visible key changes nothing, not even the sign of a zero."""
    highest = tl.maximum(most, next_most)
    origin = tl.where(highest == float("-inf"), 0.0, highest)
    keep = tl.exp2(most - origin)
    add = tl.exp2(next_most - origin)
    empty = next_total == 0.0
    merged = weighted * keep[:, None] + next_weighted * add[:, None]
    weighted = tl.where(empty[:, None], weighted, merged)
    total = tl.where(empty, total, total * keep + next_total * add)
    return tl.where(empty, most, highest), total, weighted


@triton.jit
def merge_values(most, total, weighted, next_most, next_total, next_weighted, INT8: tl.constexpr):
    """The same for weighted values as `no_values` begins them."""
    new_most, new_total, first = merge(most, total, weighted[0], next_most, next_total, next_weighted[0])
    if INT8:
        _, _, second = merge(most, total, weighted[1], next_most, next_total, next_weighted[1])
        return new_most, new_total, (first, second)
    else:
        return new_most, new_total, (first,)
