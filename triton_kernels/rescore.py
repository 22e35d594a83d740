"""The best logits of a bf16 head, found by int8 and scored again in bf16.

At small batch the head is the largest read of a step, and int8 halves it. The int8 logits only choose candidates; each
candidate's logit is then computed again with the tile, and so the bits, of the bf16 head. The result is the bf16 head's
as long as its k best are among the k + MARGIN best by int8.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.head import BF16_TILE, Table, head_warps, int8_logits, logit_tile, normed_bf16
from triton_kernels.ranking import top
from triton_kernels.selection import in_order

MARGIN = 64


@triton.jit(do_not_specialize=["C"])
def rescore_kernel(
    out,  # f32 [T, C]
    x,  # bf16 [T, K]
    table,  # bf16 [V, K]
    ids,  # int64 [T, C]; a negative id is scored as some row
    C,
    K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BF16: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    t = tl.program_id(1).to(tl.int64)
    rc = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    rows = tl.maximum(tl.load(ids + t * C + rc, mask=rc < C, other=0), 0)
    # the shape of the product decides its bits, though only the first column holds a token
    column = tl.arange(0, BLOCK_T)
    x_at = x + t * K + tl.zeros([1, BLOCK_T], dtype=tl.int64)
    total = logit_tile(
        table + rows[:, None] * K, x_at, (column == 0)[None, :], K, BLOCK_V, BLOCK_T, BLOCK_K, False, BF16
    )  # fmt: skip
    allow_successor(PDL)
    tl.store(out + t * C + rc, tl.sum(tl.where(column[None, :] == 0, total, 0.0), axis=1), mask=rc < C)


def rescored_top(
    x: Tensor, gain: Tensor, eps: float, table: Table, k: int, extra_ids: Tensor, device: Device
) -> tuple[Tensor, Tensor]:
    """What `ranking.top` says of the bf16 logits of f32 [R, H]: (ids, logits), both [R, min(k, V) + E]."""
    rough = int8_logits(x, gain, eps, table, device)
    vocab = rough.shape[1]
    ids, _ = top(rough, k + MARGIN, extra_ids, device)
    logits = exact_logits(x, gain, eps, table, ids, device)
    return in_order(ids, logits, min(k, vocab), extra_ids.shape[1], vocab, device)


def exact_logits(x: Tensor, gain: Tensor, eps: float, table: Table, ids: Tensor, device: Device) -> Tensor:
    """The bf16 head's logits of some tokens of each row: f32 [R, H], int64 [R, C] -> f32 [R, C]."""
    if table.exact is None:
        raise ValueError("this table was packed without a bf16 head to score candidates with")
    logits = device.empty(*ids.shape, dtype=torch.float32)
    if logits.numel():
        device.launch(
            rescore_kernel,
            (triton.cdiv(ids.shape[1], BF16_TILE["BLOCK_V"]), x.shape[0]),
            out=logits,
            x=normed_bf16(x, gain, eps, table.exact.shape[1], device),
            table=table.exact,
            ids=ids.contiguous(),
            C=ids.shape[1],
            K=table.exact.shape[1],
            BF16=device.bf16,
            **BF16_TILE,
            num_warps=head_warps(device),
            num_stages=3,
        )
    return logits
