"""The ternary linear of one or two tokens: words of four codes, dp4a, all of a row's K in one program.

Bound by the memory that weights come from, so it is written to have many 16-byte loads in flight.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, ask_ahead, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized
from triton_kernels.sums import rescale, scaling, ternary_sum
from triton_kernels.tuning import LinearTile, power_of_two


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
    LINES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DP4A: tl.constexpr,
    AHEAD: tl.constexpr,
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
    if AHEAD:
        line = BLOCK_W + 32 * tl.arange(0, LINES)
        rest = tl.minimum(line, WORDS - 1)[None, :]
        ask_ahead(planes + row + rest)
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
        LINES=power_of_two(max(1, (w.padded_k - tile.depth) // 128)),
        DP4A=device.dp4a,
        AHEAD=device.asks_ahead and w.padded_k > tile.depth,
        **scaling(q, w, residual, out),
        BLOCK_P=tile.packed,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
