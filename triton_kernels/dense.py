"""The ternary linear of many tokens, on weights unpacked once to int8: plain tensor-core products, no decoding.

A quarter of the bytes is what packed weights save, and from some dozens of tokens on bytes are no longer what a step
waits for: decoding 2-bit weights in the inner loop is (0.2 to 0.4 of the int8 rate on an H200, 2026-11-26). So a second
copy at one byte a weight, [N, K] in canonical order with K contiguous, is multiplied as it is. Integer sums, scales,
residual and gate are those of the packed form, so the bits are too. Weights are the left operand: a tile is at least as
tall as a warp group wants, and as wide as there are tokens. Two ways to fetch a tile: every thread by its own
addresses, or, on sm_90, the copy engine by a descriptor. Programs that share K add into zeros; the last one to arrive
rescales.

What to expect, from bytes and operations: T tokens of N x K take at least max(N K / 4.0 TB/s, 2 T N K / 954 T/s) on
that H200. Of 2B-4T's four linears that is 520 us a step for T up to 128, 1.1 ms for 256 and 9 ms for 2048.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_kernels.chain import allow_successor, ask_for_rows, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pack import Dense
from triton_kernels.pointwise import Quantized
from triton_kernels.sums import rescale
from triton_kernels.tuning import COPY_ENGINE, DenseTile

FEW_TOKENS = 64
"""Up to so many, weights are what a linear waits for."""
SUMS_A_THREAD = 128
"""So many accumulators and the addresses of an epilogue do not fit a thread's registers: it is done in halves then."""


@triton.jit
def own_addresses(source, rows, K, FETCH: tl.constexpr):
    """Where each row begins, for threads that fetch by themselves."""
    if FETCH == 1:
        return source + rows.to(tl.int64)[:, None] * K
    else:
        return source


@triton.jit
def fetched(source, at, there, first, k, BLOCK_K: tl.constexpr, FETCH: tl.constexpr):
    """Bytes k .. k + BLOCK_K - 1 of a tile's rows, which begin at row `first`. What is past the end is not read."""
    if FETCH == 1:
        return tl.load(at + (k + tl.arange(0, BLOCK_K))[None, :], mask=there[:, None], other=0)
    else:
        return source.load([first, k])


@triton.jit
def halves(total):
    """The tokens of [BLOCK_N, BLOCK_T] in two halves."""
    parts = tl.permute(tl.reshape(total, [total.shape[0], 2, total.shape[1] // 2]), (0, 2, 1))
    return tl.split(parts)


@triton.jit
def store_rescaled(
    out, total, line, rt, rn, token_scale, row_scale, residual, T, N, HAS_RESIDUAL: tl.constexpr
):  # fmt: skip
    """Integer sums [BLOCK_T, BLOCK_N] to outputs, at tokens `line` of `out` and of `residual`."""
    inside = (rt < T)[:, None] & (rn < N)[None, :]
    at = line[:, None] * N + rn[None, :]
    scale = tl.load(token_scale + rt, mask=rt < T, other=0.0)[:, None]
    row_factor = tl.load(row_scale + rn, mask=rn < N, other=0.0)[None, :]
    tl.store(out + at, rescale(total, scale, row_factor, residual, at, inside, HAS_RESIDUAL), mask=inside)


@triton.jit(do_not_specialize=["T"])
def dense_kernel(
    out,  # f32 [T, N]
    sums,  # int32 [T, N] of zeros, and zeros again at the end; for SPLIT_K > 1
    arrived,  # int32 of zeros, one a tile, and zeros again at the end; for SPLIT_K > 1
    codes,  # int8 [T, K], or its descriptor
    weights,  # int8 [N, K], or its descriptor
    plain,  # int8 [N, K]: the weights by address, for AHEAD
    token_scale,  # f32 [T]
    row_scale,  # f32 [N]
    residual,  # f32 [T, N]
    T,
    N,
    K,
    turns,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    FETCH: tl.constexpr,
    HALVES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    # programs of one tile of weights follow one another, so that it comes from memory once
    first_t = tl.program_id(0) * BLOCK_T
    first_n = tl.program_id(1) * BLOCK_N
    rt = first_t + tl.arange(0, BLOCK_T)
    rn = first_n + tl.arange(0, BLOCK_N)
    if AHEAD:
        row = plain + tl.minimum(rn, N - 1).to(tl.int64) * K + tl.program_id(2) * turns * BLOCK_K
        ask_for_rows(row, turns * BLOCK_K)
    wait_for_predecessor(PDL)
    w_at = own_addresses(weights, rn, K, FETCH)
    x_at = own_addresses(codes, rt, K, FETCH)
    total = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.int32)
    for i in range(turns):
        k = (tl.program_id(2) * turns + i) * BLOCK_K
        w = fetched(weights, w_at, rn < N, first_n, k, BLOCK_K, FETCH)
        x = fetched(codes, x_at, rt < T, first_t, k, BLOCK_K, FETCH)
        total = tl.dot(w, tl.trans(x), total, out_dtype=tl.int32)
    allow_successor(PDL)
    base = first_t.to(tl.int64) * N
    line = tl.arange(0, BLOCK_T)
    if SPLIT_K > 1:
        inside = (rt < T)[:, None] & (rn < N)[None, :]
        at = base + line[:, None] * N + rn[None, :]
        tl.atomic_add(sums + at, tl.trans(total), mask=inside, sem="relaxed")
        # all threads' sums are in before this program counts itself in, and seen by the one that finds all there
        tl.debug_barrier()
        mine = arrived + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(mine, 1, sem="acq_rel") == SPLIT_K - 1:
            whole = tl.load(sums + at, mask=inside, other=0, cache_modifier=".cg")
            tl.store(sums + at, tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.int32), mask=inside)
            tl.store(mine, 0)
            store_rescaled(
                out + base, whole, line, rt, rn, token_scale, row_scale, residual + base, T, N, HAS_RESIDUAL
            )  # fmt: skip
    elif HALVES:
        low, high = halves(total)
        half = tl.arange(0, BLOCK_T // 2)
        store_rescaled(
            out + base, tl.trans(low), half, first_t + half, rn,
            token_scale, row_scale, residual + base, T, N, HAS_RESIDUAL,
        )  # fmt: skip
        half += BLOCK_T // 2
        store_rescaled(
            out + base, tl.trans(high), half, first_t + half, rn,
            token_scale, row_scale, residual + base, T, N, HAS_RESIDUAL,
        )  # fmt: skip
    else:
        store_rescaled(
            out + base, tl.trans(total), line, rt, rn, token_scale, row_scale, residual + base, T, N, HAS_RESIDUAL
        )  # fmt: skip


def dense_linear(
    out: Tensor, q: Quantized, w: Dense, residual: Tensor | None, tile: DenseTile, device: Device, scratch: Tensor
) -> None:
    """Quantized [T, K] x Dense [N, K] -> out f32 [T, N], plus residual f32 [T, N] if given.

    `scratch` is int32 zeros, and zeros again when this is done: at least `scratch_size` where K is split.
    """
    num_tokens, num_outputs = out.shape
    turns = whole_turns(w, tile)
    sums = arrived = scratch
    if tile.split_k > 1:
        sums, arrived = scratch[: out.numel()], scratch[out.numel() :]
    device.launch(
        dense_kernel,
        (triton.cdiv(num_tokens, tile.tokens), triton.cdiv(num_outputs, tile.rows), tile.split_k),
        out=out,
        sums=sums,
        arrived=arrived,
        plain=w.weights,
        residual=out if residual is None else residual,
        N=num_outputs,
        turns=turns,
        BLOCK_N=tile.rows,
        SPLIT_K=tile.split_k,
        HALVES=in_halves(tile.rows, tile),
        HAS_RESIDUAL=residual is not None,
        AHEAD=device.asks_ahead and num_tokens <= FEW_TOKENS,
        **operands(q, w, tile, tile.rows),
    )


def operands(q: Quantized, w: Dense, tile: DenseTile, rows: int) -> dict[str, Any]:
    """The arguments that this kernel and `dense_gated.py`'s share; descriptors are of tiles of `rows` weights."""
    by_engine = tile.fetch == COPY_ENGINE
    return {
        "codes": TensorDescriptor.from_tensor(q.codes, [tile.tokens, tile.depth]) if by_engine else q.codes,
        "weights": TensorDescriptor.from_tensor(w.weights, [rows, tile.depth]) if by_engine else w.weights,
        "token_scale": q.scale,
        "row_scale": w.row_scale,
        "T": q.codes.shape[0],
        "K": w.weights.shape[1],
        "BLOCK_T": tile.tokens,
        "BLOCK_K": tile.depth,
        "FETCH": tile.fetch,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def whole_turns(w: Dense, tile: DenseTile) -> int:
    """How often a program goes round; ValueError where K cannot be cut so."""
    padded_k = w.weights.shape[1]
    if padded_k % (tile.depth * tile.split_k):
        raise ValueError(f"K = {padded_k} cannot be cut into {tile.split_k} parts of whole tiles of {tile.depth}")
    return padded_k // (tile.depth * tile.split_k)


def in_halves(rows: int, tile: DenseTile) -> bool:
    return rows * tile.tokens >= SUMS_A_THREAD * 32 * tile.num_warps


def scratch_size(num_tokens: int, num_outputs: int, tile: DenseTile) -> int:
    """Sums and a counter for each tile, where K is split."""
    if tile.split_k == 1:
        return 0
    return num_tokens * num_outputs + -(-num_tokens // tile.tokens) * -(-num_outputs // tile.rows)


def dense_scratch(num_tokens: int, num_outputs: int, tile: DenseTile, held: Tensor | None, device: Device) -> Tensor:
    """`held` where it is large enough, else new zeros."""
    needed = scratch_size(num_tokens, num_outputs, tile)
    if held is not None and held.numel() >= needed:
        return held
    return device.zeros(max(1, needed), dtype=torch.int32)
