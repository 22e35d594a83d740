"""A capture without a GPU: a replay runs the work again, into the tensor that the capture returned."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class FakeCapture:
    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.num_captures += 1
        result = work()

        def replay() -> None:
            self.num_replays += 1
            result.copy_(work())

        return result, replay
