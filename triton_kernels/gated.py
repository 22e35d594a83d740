"""gate and up in one linear whose epilogue multiplies them: act(gate) * up, without writing either.

A tile takes packed rows of gate and of up alternately (by address; the stored order stays), so both numbers of one
output meet in one program, and a tensor-core tile is as tall as that of a plain linear. The integer sums, the rescale
and the gate are those of `sums.py` and `pointwise.py`, so the bits are too. It saves writing and reading 2 F numbers
a token and pays where that is what a step waits for: whether it is used is a row of the tuning table, and without a row
it is not.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized, check_act, gated
from triton_kernels.sums import plane_sums, plane_total
from triton_kernels.tuning import LinearTile


@triton.jit(do_not_specialize=["T"])
def gated_kernel(
    out,  # f32 [T, 4 Q]
    codes,  # int8 [T, K]
    planes,  # int8 [2 Q, K]: Q packed rows of gate, then Q of up
    token_scale,  # f32 [T]
    code_sum,  # int32 [T]
    row_scale,  # f32 [4, 2 Q]
    T,
    Q: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RELU2: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    rt = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    i = tl.arange(0, BLOCK_P)
    rp = tl.minimum(tl.program_id(1) * (BLOCK_P // 2) + i // 2, Q - 1) + (i % 2) * Q
    sum0, sum1, sum2, sum3 = plane_sums(
        planes, codes, rp, rt, T, 0, K, 1, BLOCK_P, BLOCK_T, BLOCK_K
    )  # fmt: skip
    allow_successor(PDL)
    in_t = rt < T
    rq = tl.program_id(1) * (BLOCK_P // 2) + tl.arange(0, BLOCK_P // 2)
    base = (tl.program_id(0) * BLOCK_T).to(tl.int64) * (4 * Q)
    at = tl.arange(0, BLOCK_T)[:, None] * (4 * Q) + rq[None, :]
    inside = in_t[:, None] & (rq < Q)[None, :]
    for plane in tl.static_range(4):
        codes_total = tl.load(code_sum + rt, mask=in_t, other=0)[:, None]
        total = plane_total(sum0, sum1, sum2, sum3, codes_total, plane)
        scale = tl.load(token_scale + rt, mask=in_t, other=0.0)[:, None]
        value = total.to(tl.float32) * (scale * tl.load(row_scale + plane * (2 * Q) + rp)[None, :])
        gate, up = tl.split(tl.reshape(value, [BLOCK_T, BLOCK_P // 2, 2]))
        tl.store(out + base + plane * Q + at, gated(gate, up, RELU2), mask=inside)


def gated_linear(q: Quantized, w: Weights, act: str, tile: LinearTile, device: Device) -> Tensor:
    """Quantized [T, K] x Weights of two equal segments gate | up [2F, K] -> act(gate) * up, f32 [T, F]."""
    check_act(act)
    if w.num_packed % 2:
        raise ValueError(f"gate and up need equal segments, not {w.num_packed} packed rows in all")
    if q.num_values != w.num_inputs:
        raise ValueError(f"the linear takes K = {w.num_inputs} inputs, the codes have K = {q.num_values}")
    if tile.split_k != 1 or w.padded_k % tile.depth:
        raise ValueError(f"K = {w.padded_k} cannot be cut into one part of whole tiles of {tile.depth}: {tile}")
    num_tokens, num_pairs = q.codes.shape[0], w.num_packed // 2
    out = device.empty(num_tokens, 4 * num_pairs, dtype=torch.float32)
    if num_tokens:
        device.launch(
            gated_kernel,
            (triton.cdiv(num_tokens, tile.tokens), triton.cdiv(num_pairs, tile.packed // 2)),
            out=out,
            codes=q.codes,
            planes=w.planes,
            token_scale=q.scale,
            code_sum=q.code_sum,
            row_scale=w.row_scale,
            T=num_tokens,
            Q=num_pairs,
            K=w.padded_k,
            BLOCK_P=tile.packed,
            BLOCK_T=tile.tokens,
            BLOCK_K=tile.depth,
            RELU2=act == "relu2",
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return out
