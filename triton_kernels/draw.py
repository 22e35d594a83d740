"""From hidden states to the next tokens without the host: biases, penalties, top_k, top_p, min_p, temperature, a draw.

The plain chain of samplers with the meaning of `DrawBatch` (bitnet_model/batch.py): biases and penalties in fp32, what
follows in fp64. Sums over a row's candidates run over pieces of CHUNK, each in one fixed order, one after the other,
and what is cut adds an exact zero; so a row's token depends neither on its company nor on how many candidates were
ranked for it. Random numbers come with the batch. Knows no head: it is given logits, and edits them in place.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device

CHUNK = 64
NUM_PARAMETERS = 8


@dataclass(frozen=True, slots=True)
class Draws:
    """How tokens are drawn, on the device: a `DrawBatch` with as much room for every row.

    parameters    f64 [R, 8]       as there
    randoms       f64 [rounds, R]
    windows       int64 [R, W]     the row's last tokens, the first window_sizes[r] of them
    window_sizes  int32 [R]
    bias_ids      int64 [R, E]     -1: none
    biases        f32 [R, E]
    turn          int32 [1]        which round it is
    """

    parameters: Tensor
    randoms: Tensor
    windows: Tensor
    window_sizes: Tensor
    bias_ids: Tensor
    biases: Tensor
    turn: Tensor


@triton.jit
def window_tokens(windows, drawn, i, known, total, R, r, none):
    """The tokens at places i of a row's window, which goes on with what earlier rounds drew."""
    given = tl.load(windows + i, mask=i < known, other=none)
    later = tl.load(drawn + (i - known).to(tl.int64) * R + r, mask=(i >= known) & (i < total), other=none)
    return tl.where(i < known, given, later)


@triton.jit(do_not_specialize=["V", "R", "wide", "most_biases"])
def edit_kernel(
    logits,  # f32 [R, V]
    parameters,  # f64 [R, 8]
    windows,  # int64 [R, wide]
    window_sizes,  # int32 [R]
    drawn,  # int64 [rounds, R]
    bias_ids,  # int64 [R, most_biases]
    biases,  # f32 [R, most_biases]
    turn,  # int32 [1]
    V,
    R,
    wide,
    most_biases,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(0).to(tl.int64)
    logits += r * V
    windows += r * wide
    for first in range(0, most_biases, CHUNK):
        e = first + tl.arange(0, CHUNK)
        token_id = tl.load(bias_ids + r * most_biases + e, mask=e < most_biases, other=-1)
        bias = tl.load(biases + r * most_biases + e, mask=e < most_biases, other=0.0)
        # a token has two biases only where one of them is -inf, so their order does not matter
        tl.atomic_add(logits + token_id, bias, mask=token_id >= 0, sem="relaxed")
    tl.debug_barrier()
    repeat = tl.load(parameters + r * 8 + 4).to(tl.float32)
    presence = tl.load(parameters + r * 8 + 5).to(tl.float32)
    frequency = tl.load(parameters + r * 8 + 6).to(tl.float32)
    known = tl.load(window_sizes + r)
    total = known + tl.load(turn)
    start = tl.maximum(total - tl.load(parameters + r * 8 + 7).to(tl.int32), 0)
    for first in range(start, total, CHUNK):
        i = first + tl.arange(0, CHUNK)
        mine = window_tokens(windows, drawn, i, known, total, R, r, -1)
        count = tl.zeros([CHUNK], dtype=tl.int32)
        earlier = tl.zeros([CHUNK], dtype=tl.int32)
        for other in range(start, total, CHUNK):
            j = other + tl.arange(0, CHUNK)
            same = mine[:, None] == window_tokens(windows, drawn, j, known, total, R, r, -2)[None, :]
            count += tl.sum(same.to(tl.int32), axis=1)
            earlier += tl.sum((same & (j[None, :] < i[:, None])).to(tl.int32), axis=1)
        # each token of the window once, by the first of its places; a row that went bad has drawn negative ids
        is_first = (earlier == 0) & (mine >= 0)
        logit = tl.load(logits + mine, mask=is_first, other=0.0, cache_modifier=".cg")
        repeated = tl.where(logit <= 0.0, logit * repeat, tl.math.div_rn(logit, repeat))
        tl.store(logits + mine, repeated - (count.to(tl.float32) * frequency + presence), mask=is_first)


@triton.jit
def relative(logits, i, count, largest, temperature):
    """exp((logit - largest) / temperature) in fp64 of the candidates i below `count`, and zeros."""
    logit = tl.load(logits + i, mask=i < count, other=0.0).to(tl.float64)
    return tl.where(i < count, tl.exp((logit - largest) / temperature), 0.0)


@triton.jit
def first_where(wanted, i, otherwise):
    return tl.min(tl.where(wanted, i, otherwise), axis=0)


@triton.jit
def last_of(sums, CHUNK: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, CHUNK) == CHUNK - 1, sums, 0.0), axis=0)


@triton.jit(do_not_specialize=["R", "K", "most_biases"])
def choose_kernel(
    drawn,  # int64 [rounds, R]; the row of this round is written
    ids,  # int64 [R, K], best first
    logits,  # f32 [R, K]
    parameters,  # f64 [R, 8]
    randoms,  # f64 [rounds, R]
    bias_ids,  # int64 [R, most_biases]
    turn,  # int32 [1]
    R,
    K,
    most_biases,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.program_id(0).to(tl.int64)
    ids += r * K
    logits += r * K
    t = tl.load(turn).to(tl.int64)
    best = tl.load(logits)
    largest = best.to(tl.float64)
    temperature = tl.load(parameters + r * 8)
    count = tl.minimum(tl.maximum(tl.load(parameters + r * 8 + 1), 1.0), K).to(tl.int32)
    j = tl.arange(0, CHUNK)
    place = tl.zeros([], dtype=tl.int32)
    if (temperature > 0.0) & (tl.abs(best) < float("inf")):
        p = tl.load(parameters + r * 8 + 2)
        if p < 1.0:
            total = largest * 0.0
            for first in range(0, count, CHUNK):
                total += last_of(tl.cumsum(relative(logits, first + j, count, largest, 1.0), axis=0), CHUNK)
            enough = p * total
            before = largest * 0.0
            stay = count
            for first in range(0, count, CHUNK):
                i = first + j
                weight = relative(logits, i, count, largest, 1.0)
                sums = tl.cumsum(weight, axis=0)
                # the likeliest stays even where p is 0
                is_cut = ((before + (sums - weight)) >= enough) & (i > 0)
                stay = tl.minimum(stay, first_where(is_cut, i, count))
                before += last_of(sums, CHUNK)
            count = stay
        p = tl.load(parameters + r * 8 + 3)
        if p > 0.0:
            stay = count
            for first in range(0, count, CHUNK):
                i = first + j
                is_cut = relative(logits, i, count, largest, 1.0) < p
                stay = tl.minimum(stay, first_where(is_cut & (i < count), i, count))
            count = tl.maximum(stay, 1)
        total = largest * 0.0
        for first in range(0, count, CHUNK):
            total += last_of(tl.cumsum(relative(logits, first + j, count, largest, temperature), axis=0), CHUNK)
        # random * total may round up to the total, which no sum exceeds
        below = (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
        threshold = tl.minimum(tl.load(randoms + t * R + r) * total, below)
        found = count
        before = largest * 0.0
        for first in range(0, count, CHUNK):
            i = first + j
            sums = tl.cumsum(relative(logits, i, count, largest, temperature), axis=0)
            found = tl.minimum(found, first_where(((before + sums) > threshold) & (i < count), i, count))
            before += last_of(sums, CHUNK)
        place = tl.where(found < count, found, 0)
    token_id = tl.load(ids + place)
    is_banned = (best == float("-inf")) & (tl.load(bias_ids + r * most_biases) >= 0)
    answer = tl.where(tl.abs(best) < float("inf"), token_id, tl.where(is_banned, -2, -1))
    earlier = tl.load(drawn + (t - 1) * R + r, mask=t > 0, other=0)
    tl.store(drawn + t * R + r, tl.where(earlier < 0, earlier, answer))


def edit(logits: Tensor, draws: Draws, drawn: Tensor, device: Device) -> None:
    """Biases and penalties into logits f32 [R, V]. drawn int64 [rounds, R]: the tokens of earlier rounds."""
    num_rows, vocab = logits.shape
    device.launch(
        edit_kernel,
        (num_rows,),
        logits=logits,
        parameters=draws.parameters,
        windows=draws.windows,
        window_sizes=draws.window_sizes,
        drawn=drawn,
        bias_ids=draws.bias_ids,
        biases=draws.biases,
        turn=draws.turn,
        V=vocab,
        R=num_rows,
        wide=draws.windows.shape[1],
        most_biases=draws.bias_ids.shape[1],
        CHUNK=CHUNK,
        num_warps=4,
    )


def choose(ids: Tensor, logits: Tensor, draws: Draws, drawn: Tensor, device: Device) -> None:
    """One of the candidates (int64 and f32 [R, K], best first) of each row into its place in drawn int64 [rounds, R].

    -1 where the best logit is no finite number, -2 where biases forbid every token; a row that had such an answer in
    the round before keeps it.
    """
    num_rows, candidates = ids.shape
    device.launch(
        choose_kernel,
        (num_rows,),
        drawn=drawn,
        ids=ids,
        logits=logits,
        parameters=draws.parameters,
        randoms=draws.randoms,
        bias_ids=draws.bias_ids,
        turn=draws.turn,
        R=num_rows,
        K=candidates,
        most_biases=draws.bias_ids.shape[1],
        CHUNK=CHUNK,
        num_warps=1,
    )
