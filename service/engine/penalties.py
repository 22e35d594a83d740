"""What changes single logits before any is cut: logit_bias, repetition, presence and frequency penalties, then DRY.

The formula and the window are llama.cpp's: for each distinct token of the last `repeat_last_n` tokens (the prompt's
included) that occurs c times there, logit = logit * r if logit <= 0 else logit / r, then
logit -= c * frequency + presence. All in fp32. Until min_tokens are generated, the tokens that would end the output
are forbidden, as by a bias of minus infinity. Knows which logits to change, not where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.dry import dry_penalties
from service.engine.order import order_of
from service.engine.ragged import pad
from service.engine.request import Request

NO_ID = -1
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Edits:
    """The logits of each row that a bias or a penalty changes.

    ids     int64   [R, E]  token ids, distinct in a row; NO_ID where there is none
    counts  float32 [R, E]  occurrences in the penalty window; 0 for a token that is only biased
    bias    float32 [R, E]  added first; -inf bans the token, and stands beside NO_ID
    runs    int64   [R, E]  the same ids ascending, repeated instead of NO_ID
    dry     float32 [R, E]  taken off last; None where no row has any
    """

    ids: NDArray[np.int64]
    counts: F32
    bias: F32
    runs: NDArray[np.int64]
    dry: F32 | None = None

    def per_row(self) -> list[int]:
        """How many logits of each row are edited."""
        counts: list[int] = (self.ids != NO_ID).sum(axis=1).tolist()
        return counts

    def of_rows(self, rows: list[int]) -> Edits:
        dry = None if self.dry is None else self.dry[rows]
        return Edits(self.ids[rows], self.counts[rows], self.bias[rows], self.runs[rows], dry)

    def contains(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the ids [R, K] are edited in their row: bool [R, K]."""
        row = np.arange(len(ids))[:, None] << 32  # one sorted list of (row, id) for all rows
        edited, wanted = (self.runs + row).ravel(), (ids + row).ravel()
        found: NDArray[np.bool_] = edited.take(edited.searchsorted(wanted), mode="clip") == wanted
        return found.reshape(ids.shape)


def collect_edits(requests: Sequence[Request], listed: Sequence[list[int]] | None = None) -> Edits:
    """Gather the edits of each request's next token; E is the longest row's window and biases together.

    listed: more ids of each row, which count as edited even where nothing changes them.
    """
    windows = [_window_first(request) for request in requests]
    biases = [biases_of(request) for request in requests]
    dries = [_dry_first(request) for request in requests]
    if listed is not None or any(biases) or any(dries):
        return _with_biases(windows, biases, dries, listed or [()] * len(requests))
    runs = pad(windows, NO_ID)
    runs.sort(axis=1)
    is_first = _first_of_run(runs)
    starts = np.flatnonzero(is_first)
    counts = np.zeros(runs.shape, dtype=np.float32)
    counts.ravel()[starts[:-1]] = starts[1:] - starts[:-1]
    if starts.size:
        counts.ravel()[starts[-1]] = runs.size - starts[-1]
    return _distinct(runs, is_first, counts, np.zeros(runs.shape, dtype=np.float32))


def penalty_window(request: Request) -> list[int]:
    """The tokens that the penalties look at, newest last; none where no penalty acts."""
    length = penalty_length(request)
    return request.token_ids[-length:] if length else []


def penalty_length(request: Request) -> int:
    """How many of the last tokens the penalties look at; 0 where no penalty acts."""
    params = request.params
    if params.repeat_penalty == 1.0 and params.presence_penalty == params.frequency_penalty == 0.0:
        return 0
    return request.limits.n_ctx if params.repeat_last_n < 0 else params.repeat_last_n


def apply_edits(logits: F32, edits: Edits, requests: Sequence[Request]) -> F32:
    """The edited logits: float32 [R, E], of the raw logits of `edits.ids`."""
    penalised = penalise(logits + edits.bias, edits.counts, requests)
    return penalised if edits.dry is None else penalised - edits.dry


def penalise(logits: F32, counts: F32, requests: Sequence[Request]) -> F32:
    """Logits [R, E] of tokens that occur so often in the windows of these requests, penalised: float32 [R, E]."""
    rows = [(p.repeat_penalty, p.presence_penalty, p.frequency_penalty) for p in (r.params for r in requests)]
    repeat, presence, frequency = np.array(rows, dtype=np.float32).T[:, :, None]
    repeated = np.where(logits <= 0, logits * repeat, logits / repeat)
    return np.where(counts > 0, repeated - (counts * frequency + presence), logits)


def _window_first(request: Request) -> list[int]:
    """The window, unless its penalties come later in the request's order, or never."""
    is_first = request.is_plain or order_of(request.params).penalties_first
    return penalty_window(request) if is_first else []


def _dry_first(request: Request) -> Mapping[int, float]:
    """What DRY takes off, unless it comes later in the request's order, or never."""
    return dry_penalties(request) if not request.is_plain and order_of(request.params).dry_first else {}


def biases_of(request: Request) -> Sequence[tuple[int, float]]:
    """The biases of its next token, each of another token but for those that are forbidden."""
    biases, min_tokens = request.params.logit_bias, request.limits.min_tokens
    if min_tokens and request.num_generated < min_tokens:
        return biases + tuple((token_id, -math.inf) for token_id in request.limits.end_ids)
    return biases


def _with_biases(
    windows: Sequence[list[int]],
    biases: Sequence[Sequence[tuple[int, float]]],
    dries: Sequence[Mapping[int, float]],
    listed: Sequence[Sequence[int]],
) -> Edits:
    """The same where rows are biased or DRY, or list ids: a token that is in several of these is one edit."""
    rows = zip(windows, biases, dries, listed, strict=True)
    ids = pad([[*window, *(token_id for token_id, _ in own), *dry, *more] for window, own, dry, more in rows], NO_ID)
    lengths = [list(map(len, parts)) for parts in (windows, biases, dries)]
    ends, places = np.cumsum(lengths, axis=0)[:, :, None], np.arange(ids.shape[1])
    counts, bias, taken = values = np.zeros((3, *ids.shape), dtype=np.float32)
    counts[places < ends[0]] = 1
    bias[(ends[0] <= places) & (places < ends[1])] = [value for own in biases for _, value in own]
    taken[(ends[1] <= places) & (places < ends[2])] = [value for dry in dries for value in dry.values()]
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    is_first = _first_of_run(ids)
    starts = np.flatnonzero(is_first)
    values = np.take_along_axis(values, order[None], axis=2).reshape(3, -1)
    values[:, starts] = np.add.reduceat(values, starts, axis=1)
    counts, bias, taken = values.reshape(3, *ids.shape)
    return _distinct(ids, is_first, counts, bias, taken)


def _first_of_run(runs: NDArray[np.int64]) -> NDArray[np.bool_]:
    is_first = np.ones(runs.shape, dtype=np.bool_)
    np.not_equal(runs[:, 1:], runs[:, :-1], out=is_first[:, 1:])
    return is_first


def _distinct(
    runs: NDArray[np.int64], is_first: NDArray[np.bool_], counts: F32, bias: F32, dry: F32 | None = None
) -> Edits:
    ids = np.where(is_first, runs, NO_ID)
    is_none = ids == NO_ID
    counts[is_none] = 0
    bias[is_none] = -np.inf
    return Edits(ids, counts, bias, runs, dry)
