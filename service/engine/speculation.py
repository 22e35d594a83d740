"""How many guessed tokens are computed beside the newest ones, in steps of nothing but decoding.

Checking a guess costs what one more token in a step costs, and a right one saves a step. Both are measured: what steps
take with guesses and without (GuessCost), and how often a request's guesses were right lately (PromptLookup.hit_rate).
Tokens are the same with any choice made here, so it may follow the clock.

Knows no tokens, no blocks and no tensors.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

USUAL_SHARE = 0.2
"""Of a step's time, what one guess is taken to add before any was made."""
NEWEST = 0.25
"""Weight of the last step with guesses in what one adds."""
OPTIMISM = 0.998
"""Each step without guesses makes them cheaper by this, so that they are tried again some time."""
SLOWER_FOR_OTHERS = 1.25
"""A step of several requests becomes at most so much longer by guesses."""


class GuessCost:
    """Milliseconds of a step without guesses, plain_ms, and what each guess adds, each_ms."""

    def __init__(self) -> None:
        self.plain_ms = self.each_ms = 0.0
        self._num_rows = 0

    def observe(self, num_rows: int, num_guesses: int, elapsed_ms: float) -> None:
        """A step took so long."""
        if num_guesses:
            each_ms = max(0.0, elapsed_ms - self.plain_ms) / num_guesses
            self.each_ms += (each_ms - self.each_ms) * NEWEST
            return
        self.plain_ms = (self.plain_ms + elapsed_ms) / 2 if num_rows == self._num_rows else elapsed_ms
        self.each_ms = self.each_ms * OPTIMISM if self._num_rows else elapsed_ms * USUAL_SHARE
        self._num_rows = num_rows

    def can_pay(self, num_rows: int) -> bool:
        """In a step of so many rows a guess that is sure to be right is worth its time; False where no such step was
        seen last."""
        return num_rows == self._num_rows and self.each_ms * num_rows < self.plain_ms


def draft_lengths(hit_rates: Sequence[float | None], most: Sequence[int], cost: GuessCost) -> list[int]:
    """How many guesses each row of a step is to check: as long as one more makes it say more tokens a millisecond.

    hit_rates: None for a row without a guess; most: of each row. The k-th guess of a row is right with all before it,
    so with a chance of hit_rate ** k.
    """
    num_rows = len(hit_rates)
    lengths = [0] * num_rows
    says, takes = float(num_rows), cost.plain_ms
    longest = takes * SLOWER_FOR_OTHERS if num_rows > 1 else float("inf")
    chances = [(-rate, row) for row, rate in enumerate(hit_rates) if rate is not None and most[row] > 0]
    heapq.heapify(chances)
    while chances and takes + cost.each_ms <= longest:
        chance, row = -chances[0][0], chances[0][1]
        if chance * takes <= says * cost.each_ms:
            break
        says, takes = says + chance, takes + cost.each_ms
        lengths[row] += 1
        if lengths[row] < most[row]:
            heapq.heapreplace(chances, (-chance * (hit_rates[row] or 0.0), row))
        else:
            heapq.heappop(chances)
    return lengths
