"""What rendering one template may cost: CPU time, output, and the size of every value on the way.

A budget belongs to one rendering and is found through a context variable, since the hooks of jinja2 that draw on it
pass nothing of the caller's. Knows no templates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any

from jinja2.exceptions import SecurityError

MAX_CPU_S = 2.0


class BudgetError(SecurityError):
    """A template asked for more time or memory than its budget."""


class RenderBudget:
    """What one rendering may still spend. `num_chars`: how much text goes in."""

    def __init__(self, num_chars: int = 0, max_cpu_s: float = MAX_CPU_S) -> None:
        self.max_size = 2 * num_chars + 2**20
        self._output_left = 8 * num_chars + 2**20
        self._max_cpu_s = max_cpu_s
        self._deadline = time.thread_time() + max_cpu_s

    def spend(self, num_chars: int) -> None:
        """Account for `num_chars` of output and for the time so far."""
        self._output_left -= num_chars
        if self._output_left < 0:
            raise BudgetError("the template writes too much")
        if time.thread_time() > self._deadline:
            raise BudgetError(f"the template takes more than {self._max_cpu_s} s")

    def check_size(self, num_chars: int) -> None:
        if num_chars > self.max_size:
            raise BudgetError("the template makes too large a value")

    def measured(self, value: Any) -> Any:
        """The value itself, if what it would take to write it out is within bounds."""
        if isinstance(value, str):
            self.check_size(len(value))
        elif isinstance(value, (list, tuple, Mapping, set)):
            self.check_size(written_size(value, self.max_size))
        return value


_current: ContextVar[RenderBudget] = ContextVar("render_budget")


@contextmanager
def spending(budget: RenderBudget) -> Iterator[None]:
    """Every template compiled or rendered inside, in this thread, draws on `budget`."""
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)


def written_size(value: Any, limit: int) -> int:
    """Characters that a nested value comes to as text, roughly; stops counting above `limit`.

    Counts a shared part as often as it would be written, since that is how [x, x] made of [x, x] grows.
    """
    size, left = 0, [value]
    while left and size <= limit:
        item = left.pop()
        size += 1
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Mapping):
            left.extend(item.keys())
            left.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            size += len(item)
            left.extend(islice(item, limit))
    return size


def current_budget() -> RenderBudget:
    """That of the innermost `spending`."""
    return _current.get()
