"""How many rounds fit into the time a user gives to a benchmark. Knows no benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class TimeBox:
    """So many minutes for parts of several rounds each, counted from now; None for no end."""

    def __init__(self, minutes: float | None, parts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = None if minutes is None else clock() + 60 * minutes
        self._parts_left = parts

    def rounds(self, most: int) -> Iterator[int]:
        """The rounds of the next part: at least one, and no more than fit into its share of the time left."""
        began_s = self._clock()
        end_s = None if self._end_s is None else began_s + (self._end_s - began_s) / self._parts_left
        self._parts_left -= 1
        for turn in range(most):
            start_s = self._clock()
            yield turn
            now_s = self._clock()
            if end_s is not None and now_s + (now_s - start_s) > end_s:
                return
