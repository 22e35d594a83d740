"""The k largest logits of long rows without sorting them, ties to the lower id: two kernels, whatever the values.

A row is cut into groups of GROUP neighbours. The k largest logits lie in the k groups with the largest maxima (of equal
ones those of lower ids), so a first kernel takes maxima and a second, one program a row, looks at k groups only. Of
their members those that are at least the k-th maximum are kept; mostly these are hardly more than k, and they are
sorted. Where there are many more (ties, a sorted vocabulary) the bound is raised by halving until they are few. A logit
and its id are one integer that sorts like (logit, -id), so no two are equal and every step is exact. Knows no head.

What to expect: the first kernel reads the logits once, 131 MB for 256 rows of 128k tokens; the second reads some 4000
maxima and k * GROUP logits a row. An H200 took 700 us for the same by digits (2026-11-26).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.tuning import power_of_two

GROUP = 128
MOST = 256
"""More tokens than this are not selected here."""
LONGEST = 1 << 20
"""Nor are tokens of larger vocabularies: 8192 maxima are the most that one program sorts."""
MOST_IN_ORDER = 1024
SMALL = 1024
"""Of vocabularies up to this size all tokens may be kept at once."""


@triton.jit
def ordered(logit):
    """int32 that sort like the logits. -0.0 is 0.0; NaN sorts above everything, so that it is seen."""
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(logit == logit, rising, 0x7FFFFFFF)


@triton.jit
def above(high, low):
    """One int64 of an int32 and, below it, of a number that is not negative."""
    return (high.to(tl.int64) << 32) | low


@triton.jit(do_not_specialize=["groups"])
def maxima_kernel(
    out,  # int32 [R, groups]
    logits,  # f32 [R, V]
    groups,
    V,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    logit = tl.load(logits + r * V + i, mask=i < V, other=float("-inf"))
    tl.store(out + r * groups + group, tl.max(ordered(logit), axis=1), mask=group < groups)


@triton.jit
def members(logits, chosen, first, V, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The keys of the logits in BLOCK of the chosen groups: int64 [BLOCK * GROUP], the least number for none."""
    group = tl.load(chosen + first + tl.arange(0, BLOCK))
    i = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    there = (group >= 0)[:, None] & (i < V)
    logit = tl.load(logits + i, mask=there, other=0.0)
    key = tl.where(there, above(ordered(logit), (V - 1 - i).to(tl.int64)), -(1 << 63))
    return tl.reshape(key, [BLOCK * GROUP])


@triton.jit
def kept(
    scratch, logits, chosen, bound, V, GROUP: tl.constexpr, CHOSEN: tl.constexpr, BLOCK: tl.constexpr,
    ROOM: tl.constexpr,
):  # fmt: skip
    """How many members are at least `bound`; the first ROOM of them go to `scratch`."""
    count = tl.zeros([], dtype=tl.int32)
    for first in range(0, CHOSEN, BLOCK):
        key = members(logits, chosen, first, V, GROUP, BLOCK)
        large = ((key >= bound) & (key > -(1 << 63))).to(tl.int32)
        place = count + tl.cumsum(large, axis=0) - 1
        tl.store(scratch + place, key, mask=(large > 0) & (place < ROOM))
        count += tl.sum(large, axis=0)
    return count


@triton.jit(do_not_specialize=["groups", "V", "extras"])
def select_kernel(
    ids_out,  # int64 [R, K + extras]
    logits_out,  # f32 [R, K + extras]
    scratch,  # int64 [R, ROOM]
    chosen,  # int32 [R, CHOSEN]
    maxima,  # int32 [R, groups]
    logits,  # f32 [R, V]
    extra_ids,  # int64 [R, extras]; -1: none
    groups,
    V,
    extras,
    K: tl.constexpr,
    CHOSEN: tl.constexpr,
    ROOM: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(0).to(tl.int64)
    logits += r * V
    chosen += r * CHOSEN
    scratch += r * ROOM
    to = r * (K + extras)
    g = tl.arange(0, GROUPS)
    maximum = tl.load(maxima + r * groups + g, mask=g < groups, other=0)
    # for want of a group: the least of all numbers, which no group has, since a lower half is less than 2^32 - 1
    keys = tl.where(g < groups, above(maximum, (groups - 1 - g).to(tl.int64)), -(1 << 63))
    if K == 1:
        best = groups - 1 - (tl.max(keys, axis=0) & 0xFFFFFFFF).to(tl.int32)
        i = best * GROUP + tl.arange(0, GROUP)
        logit = tl.load(logits + i, mask=i < V, other=0.0)
        top = tl.max(tl.where(i < V, above(ordered(logit), (V - 1 - i).to(tl.int64)), -(1 << 63)), axis=0)
        found = V - 1 - (top & 0xFFFFFFFF)
        tl.store(ids_out + to, found)
        tl.store(logits_out + to, tl.load(logits + found))
    else:
        order = tl.arange(0, CHOSEN)
        top_groups = tl.topk(keys, CHOSEN)
        group = tl.where(top_groups == -(1 << 63), -1, groups - 1 - (top_groups & 0xFFFFFFFF).to(tl.int32))
        tl.store(chosen + order, group)
        # what is less than the k-th maximum is not among the k largest; without a k-th group nothing is known
        kth = tl.min(tl.where(order == K - 1, top_groups, 0x7FFFFFFFFFFFFFFF), axis=0)
        low = (kth >> 32) << 32
        high = ((tl.max(top_groups, axis=0) >> 32) << 32) + V
        tl.debug_barrier()
        count = kept(scratch, logits, chosen, low, V, GROUP, CHOSEN, BLOCK, ROOM)
        bound = low
        while count > ROOM:
            # low is at most the k-th largest key and leaves too many; high is larger than that or leaves none
            bound = (low >> 1) + (high >> 1) + (low & high & 1)
            count = kept(scratch, logits, chosen, bound, V, GROUP, CHOSEN, BLOCK, ROOM)
            if count > ROOM:
                low = bound
            elif count < K:
                high = bound
                count = ROOM + 1
        tl.debug_barrier()
        place = tl.arange(0, ROOM)
        candidates = tl.load(scratch + place, mask=place < count, other=-(1 << 63))
        top = tl.topk(candidates, CHOSEN)
        found = V - 1 - (top & 0xFFFFFFFF)
        tl.store(ids_out + to + order, found, mask=order < K)
        tl.store(logits_out + to + order, tl.load(logits + found, mask=order < K, other=0.0), mask=order < K)
    for first in range(0, extras, 64):
        e = first + tl.arange(0, 64)
        extra = tl.load(extra_ids + r * extras + e, mask=e < extras, other=-1)
        extra_logit = tl.load(logits + extra, mask=extra >= 0, other=float("-inf"))
        tl.store(ids_out + to + K + e, extra, mask=e < extras)
        tl.store(logits_out + to + K + e, extra_logit, mask=e < extras)


@triton.jit(do_not_specialize=["found", "extras"])
def order_kernel(
    ids_out,  # int64 [R, K + extras]
    logits_out,  # f32 [R, K + extras]
    ids,  # int64 [R, found + extras]: candidates, all different, then the extras
    logits,  # f32 [R, found + extras]
    found,
    extras,
    V,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(0).to(tl.int64)
    ids += r * (found + extras)
    logits += r * (found + extras)
    to = r * (K + extras)
    i = tl.arange(0, BLOCK)
    logit = tl.load(logits + i, mask=i < found, other=0.0)
    code = V - 1 - tl.load(ids + i, mask=i < found, other=0)
    # below the id, the place: what is sorted finds its logit again
    key = tl.sort(tl.where(i < found, above(ordered(logit), code * BLOCK + i), -(1 << 63)), descending=True)
    place = (key & (BLOCK - 1)).to(tl.int32)
    tl.store(ids_out + to + i, tl.load(ids + place, mask=i < K, other=0), mask=i < K)
    tl.store(logits_out + to + i, tl.load(logits + place, mask=i < K, other=0.0), mask=i < K)
    for first in range(0, extras, 64):
        e = first + tl.arange(0, 64)
        extra = tl.load(ids + found + e, mask=e < extras, other=-1)
        extra_logit = tl.load(logits + found + e, mask=extra >= 0, other=float("-inf"))
        tl.store(ids_out + to + K + e, extra, mask=e < extras)
        tl.store(logits_out + to + K + e, extra_logit, mask=e < extras)


def in_order(ids: Tensor, logits: Tensor, k: int, num_extra: int, vocab: int, device: Device) -> tuple[Tensor, Tensor]:
    """The k best of the first C candidates of each row, then its extras: [R, C + E] -> (ids, logits), both [R, k + E].

    int64 ids, those of the candidates all different; f32 logits. An extra id of -1 gets -inf.
    """
    num_rows, found = ids.shape[0], ids.shape[1] - num_extra
    block = power_of_two(found)
    if block > MOST_IN_ORDER or block * vocab >= 1 << 32:
        return sorted_by_torch(ids, logits, k, num_extra)
    best = device.empty(num_rows, k + num_extra, dtype=torch.int64)
    their = device.empty(num_rows, k + num_extra, dtype=torch.float32)
    if best.numel():
        device.launch(
            order_kernel,
            (num_rows,),
            ids_out=best,
            logits_out=their,
            ids=ids,
            logits=logits,
            found=found,
            extras=num_extra,
            V=vocab,
            K=k,
            BLOCK=block,
            num_warps=4,
        )
    return best, their


def sorted_by_torch(ids: Tensor, logits: Tensor, k: int, num_extra: int) -> tuple[Tensor, Tensor]:
    """The same for any number of candidates: by id first, and then a sort that leaves equal logits as they are."""
    found = ids.shape[1] - num_extra
    by_id = ids[:, :found].argsort(dim=1)
    ranked = logits.gather(1, by_id).sort(dim=1, descending=True, stable=True).indices[:, :k]
    extras = torch.arange(found, ids.shape[1], device=ids.device).expand(len(ids), -1)
    order = torch.cat([by_id.gather(1, ranked), extras], dim=1)
    ids = ids.gather(1, order)
    return ids, logits.gather(1, order).masked_fill(ids < 0, -torch.inf)


def selects(k: int, vocab: int) -> bool:
    """Whether so many of so many are selected here."""
    return k <= MOST and vocab <= LONGEST


def select(logits: Tensor, k: int, extra_ids: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """The k largest of each row of f32 [R, V], then `extra_ids` int64 [R, E] (-1 = none) with the logit -inf for none.

    Returns (ids int64, logits f32), both [R, min(k, V) + E], the k by (logit descending, id ascending).
    """
    num_rows, vocab = logits.shape
    k, extras = min(k, vocab), extra_ids.shape[1]
    ids = device.empty(num_rows, k + extras, dtype=torch.int64)
    found = device.empty(num_rows, k + extras, dtype=torch.float32)
    if not ids.numel():
        return ids, found
    groups = triton.cdiv(vocab, GROUP)
    maxima = device.empty(num_rows, groups, dtype=torch.int32)
    device.launch(
        maxima_kernel,
        (triton.cdiv(groups, 16), num_rows),
        out=maxima,
        logits=logits,
        groups=groups,
        V=vocab,
        GROUP=GROUP,
        BLOCK=16,
        num_warps=4,
    )
    chosen = power_of_two(max(k, 2))
    room = max(2 * chosen, power_of_two(vocab) if vocab <= SMALL else 0)
    device.launch(
        select_kernel,
        (num_rows,),
        ids_out=ids,
        logits_out=found,
        scratch=device.empty(num_rows, room, dtype=torch.int64),
        chosen=device.empty(num_rows, chosen, dtype=torch.int32),
        maxima=maxima,
        logits=logits,
        extra_ids=extra_ids,
        groups=groups,
        V=vocab,
        extras=extras,
        K=k,
        CHOSEN=chosen,
        ROOM=room,
        GROUP=GROUP,
        GROUPS=max(power_of_two(groups), chosen),
        BLOCK=min(chosen, 16),
        num_warps=8,
    )
    return ids, found
