"""How many guessed tokens are computed beside the newest ones, in steps of nothing but decoding.

A right guess saves a step, and checking one costs what one more token in a step costs. That is learnt from the steps
themselves: on a CPU, the second token of a step is nearly free, and from the eighth on each costs a fifth of a step of
one. How often a request's guesses were right lately is theirs to tell (guesser.py). Tokens are the same with any choice
made here, so it may follow the clock.

Knows no tokens, no blocks and no tensors.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence

MOST = 64
"""Guesses in one step, of all its rows together."""
USUAL_SHARE = 0.1
"""Of a step's time, what one guess is taken to add before any was made."""
NEWEST = 0.25
"""Weight of the last step of its kind."""
OPTIMISM, OPTIMISM_STEPS = 0.9, 256
"""What guesses add counts for less after so many steps without any, so that they are tried again some time."""
SLOWER_FOR_OTHERS = 1.25
"""A step of several requests becomes at most so much longer by guesses."""


class Curve:
    """How much longer than without guesses a step of some number of rows takes, by its number of guesses.

    Between the numbers that were seen it is straight; beyond the largest it goes on as it came there.
    """

    def __init__(self, num_rows: int, plain_ms: float) -> None:
        self._num_rows = num_rows
        self._plain_ms = plain_ms
        self._num_plain = 0
        self._seen: dict[int, float] = {0: 1.0}
        self._ratios: list[float] | None = None

    def observe(self, num_guesses: int, elapsed_ms: float) -> None:
        """A step with so many guesses took so long."""
        if num_guesses:
            # as many steps without any are the most that they can cost: a first one may have waited for a compiler
            ratio = min(max(1.0, elapsed_ms / self._plain_ms), 1.0 + num_guesses)
            known = self._seen.setdefault(num_guesses, ratio)
            self._seen[num_guesses] = known + (ratio - known) * NEWEST
            self._ratios = None
            return
        self._plain_ms += (elapsed_ms - self._plain_ms) * NEWEST
        self._num_plain += 1
        if self._num_plain % OPTIMISM_STEPS == 0:
            self._seen = {count: 1.0 + (ratio - 1.0) * OPTIMISM for count, ratio in self._seen.items()}
            self._ratios = None

    @property
    def ratios(self) -> list[float]:
        """Of 0, 1, ... guesses, as far as any could be worth it; none where not even guesses that are all right are."""
        if self._ratios is None:
            counts = sorted(self._seen)
            ratios = [self._ratio(count, counts) for count in range(MOST + 1)]
            if self._num_rows > 1:
                ratios = ratios[: bisect_right(ratios, SLOWER_FOR_OTHERS)]
            rows = self._num_rows
            is_worth_it = any(rows + count > rows * ratio for count, ratio in enumerate(ratios))
            self._ratios = ratios if is_worth_it else []
        return self._ratios

    def _ratio(self, count: int, counts: Sequence[int]) -> float:
        place = bisect_right(counts, count)
        below = counts[place - 1]
        if place < len(counts):
            above = counts[place]
            slope = (self._seen[above] - self._seen[below]) / (above - below)
        else:
            slope = (self._seen[below] - 1.0) / below if below else USUAL_SHARE
        return self._seen[below] + (count - below) * slope


class GuessCost:
    """The curves of all numbers of rows."""

    def __init__(self) -> None:
        self._curves: dict[int, Curve] = {}

    def observe(self, num_rows: int, num_guesses: int, elapsed_ms: float) -> None:
        """A step took so long."""
        if num_rows in self._curves:
            self._curves[num_rows].observe(num_guesses, elapsed_ms)
        elif not num_guesses:
            self._curves[num_rows] = Curve(num_rows, elapsed_ms)

    def ratios(self, num_rows: int) -> list[float]:
        """Those of a step of so many rows; none where no such step was seen."""
        return self._curves[num_rows].ratios if num_rows in self._curves else []


def draft_lengths(hit_rates: Sequence[float | None], most: Sequence[int], ratios: Sequence[float]) -> list[int]:
    """How many guesses each row of a step is to check, so that it says most tokens a millisecond.

    hit_rates: None for a row without a guess; most: of each row. The k-th guess of a row is right with all before it,
    so with a chance of hit_rate ** k. ratios: as of GuessCost.
    """
    lengths, best = [0] * len(hit_rates), [0] * len(hit_rates)
    says = fastest = float(len(hit_rates))
    chances = [(-rate, 0, row) for row, rate in enumerate(hit_rates) if rate is not None and most[row] > 0]
    heapq.heapify(chances)
    for ratio in ratios[1:]:
        if not chances:
            break
        chance, row = -chances[0][0], chances[0][2]
        says += chance
        lengths[row] += 1
        if says > fastest * ratio:
            fastest, best = says / ratio, lengths.copy()
        if lengths[row] < most[row]:
            heapq.heapreplace(chances, (-chance * (hit_rates[row] or 0.0), lengths[row], row))
        else:
            heapq.heappop(chances)
    return best
