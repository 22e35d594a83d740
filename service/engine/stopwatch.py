"""The times of one generation, told to an observer as they come to be known.

Runs in the event loop's thread, where its Generation is delivered to. Knows no metrics: whatever satisfies `Observer`
will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from service.engine.request import Delta


class Observer(Protocol):
    """Is told how generations go, in plain numbers; times in seconds. It must not block."""

    def first_token(self, waited_s: float, num_prompt: int, num_cached: int) -> None:
        """A generation has its first token, `waited_s` after it was asked for."""
        ...

    def more_tokens(self, gap_s: float, num_tokens: int) -> None:
        """`num_tokens` more came `gap_s` after those before them."""
        ...

    def finished(
        self, reason: str, total_s: float, num_prompt: int, num_generated: int, prompt_s: float, predicted_s: float
    ) -> None:
        """A generation ended for this reason (a FinishReason), `total_s` after it was asked for. prompt_s, predicted_s:
        what the engine spent until its first token, and from there to its last."""
        ...


@dataclass(slots=True)
class Stopwatch:
    """Started when a request is asked for. `clock`: seconds, monotonic."""

    observer: Observer
    clock: Callable[[], float]
    started_s: float
    num_prompt: int
    _last_s: float = field(init=False, default=0.0)
    _last: Delta = field(init=False, default_factory=Delta)

    def note(self, delta: Delta) -> None:
        """The engine has added this."""
        now_s = self.clock()
        gained = delta.num_generated - self._last.num_generated
        if gained > 0:
            if self._last.num_generated == 0:
                self.observer.first_token(now_s - self.started_s, self.num_prompt, delta.num_cached)
            else:
                self.observer.more_tokens(now_s - self._last_s, gained)
            self._last_s = now_s
        if gained > 0 or delta.prompt_ms > 0:  # one that was aborted from outside ends with a delta without counts
            self._last = delta
        if delta.finish is not None:
            self.observer.finished(
                delta.finish.value,
                now_s - self.started_s,
                self.num_prompt,
                self._last.num_generated,
                self._last.prompt_ms / 1e3,
                self._last.predicted_ms / 1e3,
            )
