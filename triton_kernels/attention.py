"""Paged causal attention of ragged rows, prefill and decode alike, with bits that depend on a query's position only.

A query's keys are cut into splits of a fixed number of tokens aligned to absolute position, merged in order of
position (`splits.py` has the arithmetic). One matrix shape serves all: rows of (query token x head of its group)
against a tile of keys. So it does not matter which other queries share a program, whether one program visits all splits
(merging in registers) or several programs leave partial results for the last of them to merge: the operations on one
query's numbers are the same, in the same order. What a query may not see contributes an exact zero. The idea of splits
and of query blocks is that of vLLM's unified attention kernel; the fixed order follows "Defeating nondeterminism in LLM
inference" (Thinking Machines, 2025).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.cache import Cache
from triton_kernels.chain import allow_successor, ask_for_rows, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pairs import divided, load_query, no_values, store_values
from triton_kernels.query_blocks import QueryBlocks
from triton_kernels.splits import merge, merge_values, next_keys
from triton_kernels.tuning import AttentionTile, attention_rows, attention_tile, power_of_two

PROGRAMS_A_PROCESSOR = 8
MERGED_AT_ONCE = 4
MERGED_ROWS = 16
"""Rows and splits that are merged side by side: what registers hold beside what attention needs. Of a single token
there are only as many rows as heads in its group: with 16, merging four splits took 1,108 instructions, with 4 it takes
328, and a third fewer registers (sm_90)."""


@triton.jit
def query_rows(
    block_row, block_first, starts, lengths, kv_head, i, G: tl.constexpr, HQ: tl.constexpr, ROWS: tl.constexpr
):
    """Which (token, head) each matrix row i is, and where it sits: line in [T * HQ], position (-1: none), row, end.

    The last number is that of the matrix rows which are any.
    """
    TOKENS: tl.constexpr = ROWS // G
    row = tl.load(block_row + tl.program_id(0))
    first = tl.load(block_first + tl.program_id(0))
    start = tl.load(starts + row)
    count = tl.load(starts + row + 1) - start
    before = tl.load(lengths + row) - count
    token = first + i // G
    there = (i < TOKENS * G) & (token < count)
    position = tl.where(there, before + token, -1)
    line = (start + token).to(tl.int64) * HQ + kv_head * G + i % G
    last = tl.minimum(first + TOKENS, count)
    return line, there, position, row, before + last, (last - first) * G


@triton.jit
def store_merged(
    out, part_most, part_total, part_weighted, line, there, d, num_splits, max_splits, D: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """The partial results of all splits put together, in order, for some rows."""
    cell = there[:, None] & (d < D)[None, :]
    most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    weighted = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for first in range(0, num_splits, AT_ONCE):
        # Unrolled, so that the loads of several splits are under way together; one after another, the eight of 1k
        # tokens took 10 us on an H200 (2026-11-26). What lies past the last one changes no bit. The first-level cache
        # knows nothing of what other processors wrote.
        for place in tl.static_range(AT_ONCE):
            at = line * max_splits + first + place
            inside = there & (first + place < num_splits)
            next_most = tl.load(part_most + at, mask=inside, other=float("-inf"), cache_modifier=".cg")
            next_total = tl.load(part_total + at, mask=inside, other=0.0, cache_modifier=".cg")
            next_weighted = tl.load(
                part_weighted + at[:, None] * D + d[None, :],
                mask=cell & inside[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            most, total, weighted = merge(most, total, weighted, next_most, next_total, next_weighted)
    result = tl.math.div_rn(weighted, tl.where(total == 0.0, 1.0, total)[:, None])
    place = tl.where(d < D // 2, 2 * d, 2 * d - D + 1) if INT8 else d  # as `store_values` left them
    tl.store(out + line[:, None] * D + place[None, :], result, mask=cell)


@triton.jit(do_not_specialize=["max_blocks", "max_splits", "last"])  # they grow with the longest row
def attention_kernel(
    out,  # f32 [T, HQ * D]
    part_most,  # f32 [T, HQ, max_splits]; the three are written when PARTIAL
    part_total,  # f32 [T, HQ, max_splits]
    part_weighted,  # f32 [T, HQ, max_splits, D]; where INT8, even dimensions before odd
    q,  # f32 [T, HQ, D]
    keys,  # bf16 [blocks, HKV, BLOCK_TOKENS, D] of one layer, or int8 ones as int16 [.., D / 2]
    values,
    key_scale,  # f32 [blocks, HKV, BLOCK_TOKENS]
    value_scale,
    block_tables,  # int32 [B, max_blocks]
    lengths,  # int32 [B]
    starts,  # int32 [B + 1]
    block_row,  # int32 [programs]
    block_first,  # int32 [programs]
    arrived,  # int32 [programs, HKV] of zeros, and zeros again at the end; for PARTIAL
    scale,
    max_blocks,
    max_splits,
    last,  # program_id(2) of the last program: another way to it than num_programs, which would be kept in a register
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTIAL: tl.constexpr,
    AT_ONCE: tl.constexpr,
    MERGED_ROWS: tl.constexpr,
    AHEAD: tl.constexpr,
    LINE: tl.constexpr,
    INT8: tl.constexpr,
    BF16: tl.constexpr,
    PTX: tl.constexpr,
    PDL: tl.constexpr,
):
    kv_head = tl.program_id(1)
    i = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    # what describes the batch was there before the kernel that this one waits for
    line, there, position, row, end, _ = query_rows(
        block_row, block_first, starts, lengths, kv_head, i, HQ // HKV, HQ, ROWS
    )
    table = block_tables + row.to(tl.int64) * max_blocks
    num_splits = (end + SPLIT - 1) // SPLIT
    share = (num_splits + tl.num_programs(2) - 1) // tl.num_programs(2)
    begin = tl.program_id(2) * share * SPLIT
    if AHEAD:
        # of all keys and values but those of this step's tokens, so are these
        n = tl.maximum(tl.minimum(begin + tl.arange(0, SPLIT), end - 1), 0)
        block = tl.load(table + n // BLOCK_TOKENS)
        at = ((block.to(tl.int64) * HKV + kv_head) * BLOCK_TOKENS + n % BLOCK_TOKENS) * LINE
        ask_for_rows((keys + at).to(tl.int64), 2 * LINE)
        ask_for_rows((values + at).to(tl.int64), 2 * LINE)
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    query = load_query(q, line, there, D, BLOCK_D, INT8, BF16)
    most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    weighted = no_values(ROWS, BLOCK_D, INT8)
    all_most, all_total, all_weighted = most, total, weighted
    # one loop over all tiles of keys: those of the next split are on their way before a split ends
    for start in range(begin, tl.minimum(begin + share * SPLIT, end), KEYS):
        most, total, weighted = next_keys(
            start, end, most, total, weighted, query, position, table, keys, values, key_scale, value_scale,
            kv_head, scale, HKV, D, BLOCK_D, BLOCK_TOKENS, ROWS, KEYS, INT8, BF16, PTX,
        )  # fmt: skip
        if ((start + KEYS) % SPLIT == 0) | (start + KEYS >= end):
            if PARTIAL:
                to = line * max_splits + start // SPLIT
                tl.store(part_most + to, most, mask=there)
                tl.store(part_total + to, total, mask=there)
                store_values(part_weighted + to * D, weighted, there, 1, D, BLOCK_D, INT8)
            else:
                all_most, all_total, all_weighted = merge_values(
                    all_most, all_total, all_weighted, most, total, weighted, INT8
                )
            most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
            total = tl.zeros([ROWS], dtype=tl.float32)
            weighted = no_values(ROWS, BLOCK_D, INT8)
    if PARTIAL:
        # all threads' results are written before this program counts itself in, and seen by the one that finds all
        tl.debug_barrier()
        mine = arrived + tl.program_id(0) * HKV + kv_head
        if tl.atomic_add(mine, 1, sem="acq_rel") == last:
            tl.store(mine, 0)
            # found again, not kept in registers while there was something else to do
            _, _, _, _, end, num_rows = query_rows(
                block_row, block_first, starts, lengths, kv_head, i, HQ // HKV, HQ, ROWS
            )
            num_splits = (end + SPLIT - 1) // SPLIT
            for done in range(0, num_rows, MERGED_ROWS):
                part_line, part_there, _, _, _, _ = query_rows(
                    block_row, block_first, starts, lengths, kv_head, done + tl.arange(0, MERGED_ROWS),
                    HQ // HKV, HQ, ROWS,
                )  # fmt: skip
                store_merged(
                    out, part_most, part_total, part_weighted, part_line, part_there, d, num_splits, max_splits,
                    D, BLOCK_D, MERGED_ROWS, AT_ONCE, INT8,
                )  # fmt: skip
    else:
        if INT8:
            # found again, past a barrier without which the compiler would keep them from before
            tl.debug_barrier()
            line, there, _, _, _, _ = query_rows(
                block_row, block_first, starts, lengths, kv_head, i, HQ // HKV, HQ, ROWS
            )
        store_values(out + line * D, divided(all_weighted, all_total, INT8), there, 2, D, BLOCK_D, INT8)


def paged_attention(
    q: Tensor,
    cache: Cache,
    layer: int,
    block_tables: Tensor,
    lengths: Tensor,
    starts: Tensor,
    blocks: QueryBlocks,
    device: Device,
) -> Tensor:
    """Causal attention of ragged rows: q f32 [T, Hq, D] -> f32 [T, Hq * D]. All tensors on the device.

    A row of length 0 (padding) gives zeros. Slots past a row's length are never read.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = cache.keys.shape[2]
    if num_heads % num_kv_heads or head_dim != cache.keys.shape[4]:
        raise ValueError(f"q {list(q.shape)} does not fit {num_kv_heads} KV heads of {cache.keys.shape[4]}")
    out = device.empty(num_tokens, num_heads * head_dim, dtype=torch.float32)
    if num_tokens:
        tile = attention_tile(head_dim, num_heads // num_kv_heads, device)
        max_splits = -(-block_tables.shape[1] * cache.keys.shape[3] // tile.split)
        programs = split_programs(blocks.row.shape[0] * num_kv_heads, max_splits, device)
        attend(out, q, cache, layer, block_tables, lengths, starts, blocks, tile, max_splits, programs, device)
    return out


def split_programs(programs: int, max_splits: int, device: Device) -> int:
    """How many programs share the splits of one query block: 1 where there is work enough. Changes no bit.

    Four programs have room on a processor, and twice as many are asked for, so that they end together: with one for
    each, 32 rows of 1k tokens reached 0.39 of an H200's bandwidth (2026-11-26).
    """
    wanted = PROGRAMS_A_PROCESSOR * device.num_processors
    sharers = max(1, min(max_splits, (wanted + programs // 2) // programs))
    return -(-max_splits // (max_splits // sharers))  # rather one more than one with twice the work of the others


def attend(
    out: Tensor,
    q: Tensor,
    cache: Cache,
    layer: int,
    block_tables: Tensor,
    lengths: Tensor,
    starts: Tensor,
    blocks: QueryBlocks,
    tile: AttentionTile,
    max_splits: int,
    programs: int,
    device: Device,
) -> None:
    num_tokens, num_heads, head_dim = q.shape
    _, _, num_kv_heads, block_tokens, _ = cache.keys.shape
    keys, values = cache.keys[layer], cache.values[layer]
    if cache.is_int8:
        keys, values = keys.view(torch.int16), values.view(torch.int16)
    # four warps on halves of 32 dimensions would each compute what another does
    num_warps = min(2, tile.num_warps) if cache.is_int8 and head_dim <= 64 else tile.num_warps
    group = num_heads // num_kv_heads
    rows = attention_rows(tile, group, blocks.single, device)
    parts = (num_tokens, num_heads, max_splits if programs > 1 else 0)
    device.launch(
        attention_kernel,
        (blocks.row.shape[0], num_kv_heads, programs),
        out=out,
        part_most=device.empty(*parts, dtype=torch.float32),
        part_total=device.empty(*parts, dtype=torch.float32),
        part_weighted=device.empty(*parts, head_dim, dtype=torch.float32),
        q=q,
        keys=keys,
        values=values,
        key_scale=cache.key_scale[layer],
        value_scale=cache.value_scale[layer],
        block_tables=block_tables,
        lengths=lengths,
        starts=starts,
        block_row=blocks.row,
        block_first=blocks.first,
        arrived=blocks.arrived,
        scale=math.log2(math.e) / math.sqrt(head_dim),
        max_blocks=block_tables.shape[1],
        max_splits=max_splits,
        last=programs - 1,
        HQ=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        BLOCK_D=max(32, power_of_two(head_dim)),
        BLOCK_TOKENS=block_tokens,
        ROWS=rows,
        KEYS=tile.keys,
        SPLIT=tile.split,
        PARTIAL=programs > 1,
        AT_ONCE=MERGED_AT_ONCE,
        MERGED_ROWS=min(MERGED_ROWS, rows, power_of_two(group) if blocks.single else rows),
        AHEAD=device.asks_ahead and programs > 1,
        LINE=keys.shape[-1],
        INT8=cache.is_int8,
        BF16=device.bf16,
        PTX=device.dp4a,
        num_warps=num_warps,
        num_stages=tile.num_stages,
    )
