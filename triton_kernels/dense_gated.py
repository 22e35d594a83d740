"""gate and up on int8 weights in one linear whose epilogue multiplies them: act(gate) * up, without writing either.

Rows of gate and of up are two tiles and two sums of one program. Sums, rescale and gate are those of the other forms,
so the bits are too. It halves what is written and read between linear and norm: by 113 MB at 2048 tokens of 2B-4T.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.dense import fetched, halves, in_halves, operands, own_addresses, whole_turns
from triton_kernels.device import Device
from triton_kernels.pack import Dense
from triton_kernels.pointwise import Quantized, check_act, gated
from triton_kernels.sums import rescale
from triton_kernels.tuning import DenseTile


@triton.jit
def store_gated(out, gate_sums, up_sums, line, rt, rf, token_scale, row_scale, T, F, RELU2: tl.constexpr):
    """Integer sums of gate and up [BLOCK_T, BLOCK_F] to act(gate) * up, at tokens `line` of `out`."""
    inside = (rt < T)[:, None] & (rf < F)[None, :]
    scale = tl.load(token_scale + rt, mask=rt < T, other=0.0)[:, None]
    gate_factor = tl.load(row_scale + rf, mask=rf < F, other=0.0)[None, :]
    up_factor = tl.load(row_scale + F + rf, mask=rf < F, other=0.0)[None, :]
    gate = rescale(gate_sums, scale, gate_factor, out, rf[None, :], inside, False)
    up = rescale(up_sums, scale, up_factor, out, rf[None, :], inside, False)
    tl.store(out + line[:, None] * F + rf[None, :], gated(gate, up, RELU2), mask=inside)


@triton.jit(do_not_specialize=["T"])
def dense_gated_kernel(
    out,  # f32 [T, F]
    codes,  # int8 [T, K], or its descriptor
    weights,  # int8 [2 F, K], or its descriptor: the rows of gate, then those of up
    token_scale,  # f32 [T]
    row_scale,  # f32 [2 F]
    T,
    F,
    K,
    turns,
    BLOCK_F: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FETCH: tl.constexpr,
    HALVES: tl.constexpr,
    RELU2: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    first_t = tl.program_id(0) * BLOCK_T
    first_f = tl.program_id(1) * BLOCK_F
    rt = first_t + tl.arange(0, BLOCK_T)
    rf = first_f + tl.arange(0, BLOCK_F)
    gate_at = own_addresses(weights, rf, K, FETCH)
    up_at = own_addresses(weights, F + rf, K, FETCH)
    x_at = own_addresses(codes, rt, K, FETCH)
    gate = tl.zeros([BLOCK_F, BLOCK_T], dtype=tl.int32)
    up = tl.zeros([BLOCK_F, BLOCK_T], dtype=tl.int32)
    for i in range(turns):
        x = tl.trans(fetched(codes, x_at, rt < T, first_t, i * BLOCK_K, BLOCK_K, FETCH))
        gate_w = fetched(weights, gate_at, rf < F, first_f, i * BLOCK_K, BLOCK_K, FETCH)
        up_w = fetched(weights, up_at, rf < F, F + first_f, i * BLOCK_K, BLOCK_K, FETCH)
        gate = tl.dot(gate_w, x, gate, out_dtype=tl.int32)
        up = tl.dot(up_w, x, up, out_dtype=tl.int32)
    allow_successor(PDL)
    out += first_t.to(tl.int64) * F
    line = tl.arange(0, BLOCK_T)
    if HALVES:
        gate_low, gate_high = halves(gate)
        up_low, up_high = halves(up)
        half = tl.arange(0, BLOCK_T // 2)
        store_gated(
            out, tl.trans(gate_low), tl.trans(up_low), half, first_t + half, rf, token_scale, row_scale, T, F, RELU2
        )  # fmt: skip
        half += BLOCK_T // 2
        store_gated(
            out, tl.trans(gate_high), tl.trans(up_high), half, first_t + half, rf, token_scale, row_scale, T, F, RELU2
        )  # fmt: skip
    else:
        store_gated(out, tl.trans(gate), tl.trans(up), line, rt, rf, token_scale, row_scale, T, F, RELU2)


def dense_gated(out: Tensor, q: Quantized, w: Dense, act: str, tile: DenseTile, device: Device) -> None:
    """Quantized [T, K] x Dense gate | up [2F, K] -> out f32 [T, F], act(gate) * up. A tile's rows are F and F more."""
    check_act(act)
    num_tokens, num_pairs = out.shape
    if tile.split_k != 1:
        raise ValueError(f"a gate needs whole sums, not those of {tile.split_k} parts of K")
    device.launch(
        dense_gated_kernel,
        (triton.cdiv(num_tokens, tile.tokens), triton.cdiv(num_pairs, tile.rows // 2)),
        out=out,
        F=num_pairs,
        turns=whole_turns(w, tile),
        BLOCK_F=tile.rows // 2,
        HALVES=in_halves(tile.rows, tile),
        RELU2=act == "relu2",
        **operands(q, w, tile, tile.rows // 2),
    )
