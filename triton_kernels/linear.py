"""The ternary linear: int8 codes x ternary weights, summed exactly in int32, scaled once per token and row.

Three forms, chosen by `tuning.regime`: a GEMV of dp4a words for one or two tokens, a narrow tensor-core tile (K split
over programs where few of them go deep), and a wide tensor-core tile for prefill. Weights are the left operand and are
decoded in place by one mask (`pack.py`). Integer sums do not depend on the form, the tile or the split, so a token's
result does not depend on its batch. Knows neither what the outputs mean nor how the codes came about.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized
from triton_kernels.tuning import LinearTile, Regime, linear_tile, regime


@triton.jit
def dot4(a, b, total, DP4A: tl.constexpr):
    """Adds the product of the four signed bytes of a and b to total, word by word."""
    if DP4A:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for i in tl.static_range(4):
            total += ((a << (24 - 8 * i)) >> 24) * ((b << (24 - 8 * i)) >> 24)
        return total


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
def gemv_kernel(
    out,  # f32 [T, N]
    codes,  # int32 [T, WORDS]: four codes a word
    planes,  # int32 [P, WORDS]
    token_scale,  # f32 [T]
    code_sum,  # int32 [T]
    row_scale,  # f32 [4, P]
    first,  # int32 [P]
    step,  # int32 [P]
    residual,  # f32 [T, N]
    P: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_W: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DP4A: tl.constexpr,
    PDL: tl.constexpr,
):
    t = tl.program_id(1).to(tl.int64)
    rp = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.minimum(rp, P - 1)[:, None] * WORDS
    # an explicit two-dimensional address: broadcasting a one-dimensional load costs a trip through shared memory
    same = tl.zeros([BLOCK_P, 1], dtype=tl.int32)
    sum0 = tl.zeros([BLOCK_P, BLOCK_W], dtype=tl.int32)
    sum1 = tl.zeros([BLOCK_P, BLOCK_W], dtype=tl.int32)
    sum2 = tl.zeros([BLOCK_P, BLOCK_W], dtype=tl.int32)
    sum3 = tl.zeros([BLOCK_P, BLOCK_W], dtype=tl.int32)
    rk = tl.arange(0, BLOCK_W)
    # the first weights are asked for before the codes are there
    if BLOCK_W <= WORDS:
        w = tl.load(planes + row + rk[None, :], eviction_policy="evict_first")
    else:
        w = tl.load(planes + row + rk[None, :], mask=(rk < WORDS)[None, :], other=0, eviction_policy="evict_first")
    wait_for_predecessor(PDL)
    for i in tl.static_range((WORDS + BLOCK_W - 1) // BLOCK_W):
        rk = i * BLOCK_W + tl.arange(0, BLOCK_W)
        if (i + 1) * BLOCK_W <= WORDS:
            if i > 0:
                w = tl.load(planes + row + rk[None, :], eviction_policy="evict_first")
            x = tl.load(codes + t * WORDS + same + rk[None, :], eviction_policy="evict_last")
        else:
            in_k = (rk < WORDS)[None, :]
            if i > 0:
                w = tl.load(planes + row + rk[None, :], mask=in_k, other=0, eviction_policy="evict_first")
            x = tl.load(codes + t * WORDS + same + rk[None, :], mask=in_k, other=0, eviction_policy="evict_last")
        sum0 = dot4(w & 0x03030303, x, sum0, DP4A)
        sum1 = dot4(w & 0x0C0C0C0C, x, sum1, DP4A)
        sum2 = dot4(w & 0x30303030, x, sum2, DP4A)
        # 0xC0C0C0C0 as a signed literal, the only form that compiles
        sum3 = dot4(w & -0x3F3F3F40, x, sum3, DP4A)
    allow_successor(PDL)
    scale = tl.load(token_scale + t)
    codes_total = tl.load(code_sum + t)
    inside = rp < P
    to = tl.load(first + rp, mask=inside, other=0)
    jump = tl.load(step + rp, mask=inside, other=0)
    N = 4 * P
    for plane in tl.static_range(4):
        if plane == 0:
            total = ternary_sum(tl.sum(sum0, axis=1), codes_total, 0)
        elif plane == 1:
            total = ternary_sum(tl.sum(sum1, axis=1), codes_total, 1)
        elif plane == 2:
            total = ternary_sum(tl.sum(sum2, axis=1), codes_total, 2)
        else:
            total = ternary_sum(tl.sum(sum3, axis=1), codes_total, 3)
        at = t * N + to + plane * jump
        row_factor = tl.load(row_scale + plane * P + rp, mask=inside, other=0.0)
        tl.store(out + at, rescale(total, scale, row_factor, residual, at, inside, HAS_RESIDUAL), mask=inside)


@triton.jit
def plane_sums(
    planes, codes, rp, rt, first_k, K: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The masked sums [BLOCK_P, BLOCK_T] of the four planes of packed rows rp and tokens rt over K // PARTS of K."""
    x_at = codes + rt.to(tl.int64)[None, :] * K
    w_at = planes + rp.to(tl.int64)[:, None] * K
    sum0 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    sum1 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    sum2 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    sum3 = tl.zeros([BLOCK_P, BLOCK_T], dtype=tl.int32)
    for i in range(K // PARTS // BLOCK_K):
        rk = first_k + i * BLOCK_K + tl.arange(0, BLOCK_K)
        w = tl.load(w_at + rk[None, :])
        x = tl.load(x_at + rk[:, None])
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
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    rt = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rp = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    part = tl.program_id(2)
    # rows past the end read the last row again and are not stored: loads need no mask
    sum0, sum1, sum2, sum3 = plane_sums(
        planes, codes, tl.minimum(rp, P - 1), tl.minimum(rt, T - 1), part * (K // SPLIT_K),
        K, SPLIT_K, BLOCK_P, BLOCK_T, BLOCK_K,
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
    T * N, new zeros are made. ValueError when K or the residual's shape does not fit.
    """
    num_tokens = q.codes.shape[0]
    if q.num_values != w.num_inputs:
        raise ValueError(f"the linear takes K = {w.num_inputs} inputs, the codes have K = {q.num_values}")
    if residual is not None and residual.shape != (num_tokens, w.num_outputs):
        raise ValueError(f"the residual must be [{num_tokens}, {w.num_outputs}], not {list(residual.shape)}")
    out = device.empty(num_tokens, w.num_outputs, dtype=torch.float32)
    if num_tokens:
        tile = linear_tile(num_tokens, w.num_packed, w.padded_k, device)
        if regime(num_tokens, device.dp4a) is Regime.GEMV:
            gemv(out, q, w, residual, tile, device)
        else:
            matmul(out, q, w, residual, tile, device, scratch)
    return out


def gemv(out: Tensor, q: Quantized, w: Weights, residual: Tensor | None, tile: LinearTile, device: Device) -> None:
    device.launch(
        gemv_kernel,
        (triton.cdiv(w.num_packed, tile.packed), out.shape[0]),
        out=out,
        codes=q.codes.view(torch.int32),
        planes=w.planes.view(torch.int32),
        code_sum=q.code_sum,
        WORDS=w.padded_k // 4,
        BLOCK_W=tile.depth // 4,
        DP4A=device.dp4a,
        **scaling(q, w, residual, out),
        BLOCK_P=tile.packed,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


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
