"""The largest logits of each row, by (logit descending, id ascending).

A logit and its id become one integer that sorts like (logit, -id), so that torch's selection of the k largest, which
promises nothing about ties, has none to decide. Knows no head.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device

BLOCK = 1024


@triton.jit
def key_kernel(
    out,  # int64 [R, width]
    logits,  # f32 [R, stride], of which the first `width` are looked at
    ids,  # int64 [R, stride], for HAS_IDS; otherwise a logit's id is its column
    width,
    stride,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_IDS: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    logit = tl.load(logits + r * stride + i, mask=inside, other=0.0)
    # adding 0.0 turns -0.0 into 0.0, which is its equal; the bits of negative floats sort backwards
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = tl.where(logit == logit, ordered, 0x7FFFFFFF)
    row = tl.load(ids + r * stride + i, mask=inside, other=0) if HAS_IDS else i.to(tl.int64)
    tl.store(out + r * width + i, (ordered.to(tl.int64) << 32) | (V - 1 - row), mask=inside)


def sort_keys(logits: Tensor, ids: Tensor | None, width: int, vocab: int, device: Device) -> Tensor:
    """int64 [R, width] that sort like (logit, -id). NaN sorts above everything, so that it is seen.

    logits f32 and, if given, ids int64 [R, at least width] with equal strides; ids None are the columns.
    """
    keys = device.empty(logits.shape[0], width, dtype=torch.int64)
    if keys.numel():
        device.launch(
            key_kernel,
            (triton.cdiv(width, BLOCK), logits.shape[0]),
            out=keys,
            logits=logits,
            ids=keys if ids is None else ids,
            width=width,
            stride=logits.shape[1],
            V=vocab,
            BLOCK=BLOCK,
            HAS_IDS=ids is not None,
            num_warps=4,
        )
    return keys


def top(logits: Tensor, k: int, extra_ids: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """The k largest of each row of f32 [R, V], then `extra_ids` int64 [R, E] (-1 = none) with the logit -inf for none.

    Returns (ids int64, logits f32), both [R, min(k, V) + E].
    """
    vocab = logits.shape[1]
    keys = sort_keys(logits, None, vocab, vocab, device)
    # torch.topk sorts by digits, which takes 140 us on an H200 even for one row and one token (2026-11-26).
    best = keys.amax(1, keepdim=True) if k == 1 else torch.topk(keys, min(k, vocab), dim=1, sorted=True).values
    found = torch.cat([vocab - 1 - (best & 0xFFFFFFFF), extra_ids], dim=1)
    picked = logits.gather(1, found.clamp(min=0))
    return found, picked.masked_fill(found < 0, -torch.inf)
