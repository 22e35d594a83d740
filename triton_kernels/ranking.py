"""The largest logits of each row, by (logit descending, id ascending).

A few of a row are selected by our own kernels (`selection.py`). For more, a logit and its id become one integer that
sorts like (logit, -id), so that torch's selection of the k largest, which promises nothing about ties, has none to
decide. Knows no head.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.selection import above, ordered, select, selects

BLOCK = 1024


@triton.jit
def key_kernel(
    out,  # int64 [R, V]
    logits,  # f32 [R, V]
    V,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < V
    logit = tl.load(logits + r * V + i, mask=inside, other=0.0)
    tl.store(out + r * V + i, above(ordered(logit), (V - 1 - i).to(tl.int64)), mask=inside)


def sort_keys(logits: Tensor, device: Device) -> Tensor:
    """int64 [R, V] that sort like (logit, -id). NaN sorts above everything, so that it is seen."""
    num_rows, vocab = logits.shape
    keys = device.empty(num_rows, vocab, dtype=torch.int64)
    if keys.numel():
        device.launch(
            key_kernel,
            (triton.cdiv(vocab, BLOCK), num_rows),
            out=keys,
            logits=logits,
            V=vocab,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return keys


def top(logits: Tensor, k: int, extra_ids: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """The k largest of each row of f32 [R, V], then `extra_ids` int64 [R, E] (-1 = none) with the logit -inf for none.

    Returns (ids int64, logits f32), both [R, min(k, V) + E].
    """
    vocab = logits.shape[1]
    if selects(k, vocab):
        return select(logits, k, extra_ids.contiguous(), device)
    best = torch.topk(sort_keys(logits, device), min(k, vocab), dim=1, sorted=True).values
    found = torch.cat([vocab - 1 - (best & 0xFFFFFFFF), extra_ids], dim=1)
    picked = logits.gather(1, found.clamp(min=0))
    return found, picked.masked_fill(found < 0, -torch.inf)
