"""The ternary linear: int8 codes x ternary weights, summed exactly in int32, scaled once per token and row.

Three forms on packed weights, chosen by `tuning.regime`: a GEMV of dp4a words for one or two tokens (`gemv.py`), a
narrow tensor-core tile (K split over programs where few of them go deep), and a wide tensor-core tile for prefill.
Weights that are there at one byte each, too, are multiplied as such from some tokens on (`dense.py`). Integer sums do
not depend on the form, the tile or the split, so a token's result does not depend on its batch. Knows neither what the
outputs mean nor how the codes came about.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, ask_for_rows, wait_for_predecessor
from triton_kernels.dense import FEW_TOKENS, dense_linear, dense_scratch
from triton_kernels.device import Device
from triton_kernels.gemv import gemv
from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized
from triton_kernels.sums import plane_sums, plane_total, rescale, scaling
from triton_kernels.tuning import LinearTile, Regime, dense_tile, linear_tile, regime


@triton.jit(do_not_specialize=["T"])
def dot_kernel(
    out,  # f32 [T, N], or int32 [T, N] of zeros when SPLIT_K > 1
    codes,  # int8 [T, K]
    planes,  # int8 [P, K]
    token_scale,  # f32 [T]
    code_sum,  # int32 [T]
    row_scale,  # f32 [4, P]
    first,  # int32 [P]
    step,  # int32 [P]
    residual,  # f32 [T, N]
    T,
    P: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    rt = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rp = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    part = tl.program_id(2)
    if AHEAD:
        row = planes + tl.minimum(rp, P - 1).to(tl.int64) * K + part * (K // SPLIT_K)
        ask_for_rows(row, K // SPLIT_K)
    wait_for_predecessor(PDL)
    # rows of weights past the end are the last again and are not stored: their loads need no mask
    sum0, sum1, sum2, sum3 = plane_sums(
        planes, codes, tl.minimum(rp, P - 1), rt, T, part * (K // SPLIT_K), K, SPLIT_K, BLOCK_P, BLOCK_T, BLOCK_K,
    )  # fmt: skip
    allow_successor(PDL)
    in_t = rt < T
    in_p = rp < P
    inside = in_t[:, None] & in_p[None, :]
    to = tl.load(first + rp, mask=in_p, other=0)
    jump = tl.load(step + rp, mask=in_p, other=0)
    # Registers: one 64-bit base for the tile with constant offsets inside it (P is a constant for this), and the
    # tokens' scales read again for each plane; otherwise addresses and scales of all planes live at once and spill.
    base = (tl.program_id(0) * BLOCK_T).to(tl.int64) * (4 * P)
    line = tl.arange(0, BLOCK_T)[:, None] * (4 * P)
    for plane in tl.static_range(4):
        codes_total = tl.load(code_sum + rt, mask=in_t, other=0)[:, None]
        if SPLIT_K > 1:
            codes_total = tl.where(part == 0, codes_total, 0)
        total = plane_total(sum0, sum1, sum2, sum3, codes_total, plane)
        at = line + (to + plane * jump)[None, :]
        if SPLIT_K > 1:
            tl.atomic_add(out + base + at, total, mask=inside, sem="relaxed")
        else:
            scale = tl.load(token_scale + rt, mask=in_t, other=0.0)[:, None]
            row_factor = tl.load(row_scale + plane * P + rp, mask=in_p, other=0.0)[None, :]
            value = rescale(total, scale, row_factor, residual + base, at, inside, HAS_RESIDUAL)
            tl.store(out + base + at, value, mask=inside)


@triton.jit
def finish_kernel(
    out,  # f32 [T, N]
    sums,  # int32 [T, N]: read, then zeroed for the next use
    token_scale,  # f32 [T]
    row_scale,  # f32 [4, P]
    first,  # int32 [P]
    step,  # int32 [P]
    residual,  # f32 [T, N]
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    t = tl.program_id(1).to(tl.int64)
    rp = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = rp < P
    to = tl.load(first + rp, mask=inside, other=0)
    jump = tl.load(step + rp, mask=inside, other=0)
    scale = tl.load(token_scale + t)
    for plane in tl.static_range(4):
        at = t * (4 * P) + to + plane * jump
        total = tl.load(sums + at, mask=inside, other=0)
        tl.store(sums + at, tl.zeros([BLOCK_P], dtype=tl.int32), mask=inside)
        row_factor = tl.load(row_scale + plane * P + rp, mask=inside, other=0.0)
        tl.store(out + at, rescale(total, scale, row_factor, residual, at, inside, HAS_RESIDUAL), mask=inside)


def ternary_linear(
    q: Quantized, w: Weights, residual: Tensor | None, device: Device, scratch: Tensor | None = None
) -> Tensor:
    """Quantized [T, K] x Weights [N, K] -> f32 [T, N], plus residual f32 [T, N] if given.

    `scratch` is int32 zeros, and zeros again when the work queued here is done; where K is split and it holds less than
    that takes (`dense.scratch_size`), new zeros are made. ValueError when K or the residual's shape does not fit.
    """
    num_tokens = q.codes.shape[0]
    if q.num_values != w.num_inputs:
        raise ValueError(f"the linear takes K = {w.num_inputs} inputs, the codes have K = {q.num_values}")
    if residual is not None and residual.shape != (num_tokens, w.num_outputs):
        raise ValueError(f"the residual must be [{num_tokens}, {w.num_outputs}], not {list(residual.shape)}")
    out = device.empty(num_tokens, w.num_outputs, dtype=torch.float32)
    dense = dense_tile(num_tokens, w.num_outputs, w.padded_k, device) if w.dense is not None and num_tokens else None
    if w.dense is not None and dense is not None:
        zeros = dense_scratch(num_tokens, w.num_outputs, dense, scratch, device)
        dense_linear(out, q, w.dense, residual, dense, device, zeros)
    elif num_tokens:
        tile = linear_tile(num_tokens, w.num_packed, w.padded_k, device)
        if regime(num_tokens, device.dp4a) is Regime.GEMV:
            gemv(out, q, w, residual, tile, device)
        else:
            matmul(out, q, w, residual, tile, device, scratch)
    return out


def matmul(
    out: Tensor,
    q: Quantized,
    w: Weights,
    residual: Tensor | None,
    tile: LinearTile,
    device: Device,
    scratch: Tensor | None,
) -> None:
    if w.padded_k % (tile.depth * tile.split_k):
        raise ValueError(f"K = {w.padded_k} cannot be cut into {tile.split_k} parts of whole tiles of {tile.depth}")
    num_tokens = out.shape[0]
    sums = out
    if tile.split_k > 1:
        if scratch is None or scratch.numel() < out.numel():
            scratch = device.zeros(out.numel(), dtype=torch.int32)
        sums = scratch
    device.launch(
        dot_kernel,
        (triton.cdiv(num_tokens, tile.tokens), triton.cdiv(w.num_packed, tile.packed), tile.split_k),
        codes=q.codes,
        planes=w.planes,
        code_sum=q.code_sum,
        T=num_tokens,
        K=w.padded_k,
        BLOCK_T=tile.tokens,
        BLOCK_K=tile.depth,
        SPLIT_K=tile.split_k,
        AHEAD=device.asks_ahead and num_tokens <= FEW_TOKENS,
        out=sums,
        **scaling(q, w, residual, out),
        BLOCK_P=tile.packed,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    if tile.split_k > 1:
        device.launch(
            finish_kernel,
            (triton.cdiv(w.num_packed, 128), num_tokens),
            out=out,
            sums=sums,
            **scaling(q, w, residual, out),
            BLOCK_P=128,
            num_warps=4,
        )
