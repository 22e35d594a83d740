"""What changes single logits before any is cut: logit_bias, then repetition, presence and frequency penalties.

The formula and the window are llama.cpp's: for each distinct token of the last `repeat_last_n` tokens (the prompt's
included) that occurs c times there, logit = logit * r if logit <= 0 else logit / r, then
logit -= c * frequency + presence. All in fp32. Knows which logits to change, not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.ragged import pad
from service.engine.request import Request

NO_ID = -1


@dataclass(frozen=True, slots=True)
class Edits:
    """The logits of each row that a bias or a penalty changes.

    ids     int64   [R, E]  token ids, distinct in a row; NO_ID where there is none
    counts  float32 [R, E]  occurrences in the penalty window; 0 for a token that is only biased
    bias    float32 [R, E]  added first; -inf bans the token, and stands beside NO_ID
    runs    int64   [R, E]  the same ids ascending, repeated instead of NO_ID
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.float32]
    bias: NDArray[np.float32]
    runs: NDArray[np.int64]

    def per_row(self) -> list[int]:
        """How many logits of each row are edited."""
        counts: list[int] = (self.ids != NO_ID).sum(axis=1).tolist()
        return counts

    def of_rows(self, rows: list[int]) -> Edits:
        return Edits(self.ids[rows], self.counts[rows], self.bias[rows], self.runs[rows])

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
    windows = [penalty_window(request) for request in requests]
    if listed is not None or any(request.params.logit_bias for request in requests):
        return _with_biases(windows, [[*r.params.logit_bias] for r in requests], listed or [[]] * len(requests))
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
    params = request.params
    length = request.limits.n_ctx if params.repeat_last_n < 0 else params.repeat_last_n
    is_neutral = params.repeat_penalty == 1.0 and params.presence_penalty == params.frequency_penalty == 0.0
    return [] if is_neutral or length == 0 else request.token_ids[-length:]


def apply_edits(logits: NDArray[np.float32], edits: Edits, requests: Sequence[Request]) -> NDArray[np.float32]:
    """The edited logits: float32 [R, E], of the raw logits of `edits.ids`."""
    rows = [(p.repeat_penalty, p.presence_penalty, p.frequency_penalty) for p in (r.params for r in requests)]
    repeat, presence, frequency = np.array(rows, dtype=np.float32).T[:, :, None]
    biased = logits + edits.bias
    repeated = np.where(biased <= 0, biased * repeat, biased / repeat)
    return np.where(edits.counts > 0, repeated - (edits.counts * frequency + presence), biased)


def _with_biases(
    windows: Sequence[list[int]], biases: Sequence[list[tuple[int, float]]], listed: Sequence[list[int]]
) -> Edits:
    """The same where rows are biased, or list ids: a token that is in several of the three is one edit."""
    parts = zip(windows, biases, listed, strict=True)
    ids = pad([window + [token_id for token_id, _ in pairs] + more for window, pairs, more in parts], NO_ID)
    counts = np.zeros(ids.shape, dtype=np.float32)
    bias = np.zeros(ids.shape, dtype=np.float32)
    for row, (window, pairs) in enumerate(zip(windows, biases, strict=True)):
        counts[row, : len(window)] = 1
        bias[row, len(window) : len(window) + len(pairs)] = [value for _, value in pairs]
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    counts = np.take_along_axis(counts, order, axis=1)
    bias = np.take_along_axis(bias, order, axis=1)
    is_first = _first_of_run(ids)
    starts = np.flatnonzero(is_first)
    for values in (counts, bias):
        values.ravel()[starts] = np.add.reduceat(values.ravel(), starts)
    return _distinct(ids, is_first, counts, bias)


def _first_of_run(runs: NDArray[np.int64]) -> NDArray[np.bool_]:
    is_first = np.ones(runs.shape, dtype=np.bool_)
    np.not_equal(runs[:, 1:], runs[:, :-1], out=is_first[:, 1:])
    return is_first


def _distinct(
    runs: NDArray[np.int64], is_first: NDArray[np.bool_], counts: NDArray[np.float32], bias: NDArray[np.float32]
) -> Edits:
    ids = np.where(is_first, runs, NO_ID)
    is_none = ids == NO_ID
    counts[is_none] = 0
    bias[is_none] = -np.inf
    return Edits(ids, counts, bias, runs)
