"""What an observer is told of a generation's times, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.engine.request import Delta, FinishReason
from service.engine.stopwatch import Stopwatch


class Noted:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def first_token(self, *values: Any) -> None:
        self.calls.append(("first", *values))

    def more_tokens(self, *values: Any) -> None:
        self.calls.append(("more", *values))

    def finished(self, *values: Any) -> None:
        self.calls.append(("finished", *values))


def told(times_s: list[float], deltas: list[Delta]) -> list[tuple[Any, ...]]:
    clock: Iterator[float] = iter(times_s)
    noted = Noted()
    stopwatch = Stopwatch(noted, lambda: next(clock), 10.0, 7)
    for delta in deltas:
        stopwatch.note(delta)
    return noted.calls


def test_the_first_token_the_gaps_and_the_end_are_told() -> None:
    last = Delta(num_generated=5, prompt_ms=500, predicted_ms=2000, finish=FinishReason.STOP)
    assert told([11.0, 13.0, 13.5], [Delta(num_generated=1, num_cached=4), Delta(num_generated=4), last]) == [
        ("first", 1.0, 7, 4),
        ("more", 2.0, 3),
        ("more", 0.5, 1),
        ("finished", "stop", 3.5, 7, 5, 0.5, 2.0),
    ]


def test_an_abort_ends_with_the_counts_that_were_reached() -> None:
    deltas = [Delta(num_generated=2, prompt_ms=100), Delta(finish=FinishReason.ABORT)]
    assert told([11.0, 12.0], deltas)[-1] == ("finished", "abort", 2.0, 7, 2, 0.1, 0.0)


def test_a_generation_without_a_token_has_no_first_one() -> None:
    (only,) = told([11.0], [Delta(finish=FinishReason.LENGTH, prompt_ms=250)])
    assert only == ("finished", "length", 1.0, 7, 0, 0.25, 0.0)
