from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from service.warmup import warm_up


class Runner:
    """Has so many pieces to warm up."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.asked: tuple[int, int, int] = (0, 0, 0)

    def warm_up(self, max_rows: int, n_ctx: int, max_tokens: int, progress: Callable[[int, int], None]) -> None:
        self.asked = (max_rows, n_ctx, max_tokens)
        for done in range(1, self.pieces + 1):
            progress(done, self.pieces)


def test_a_warm_up_is_for_the_servers_sizes_and_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(3)
    with caplog.at_level(logging.INFO):
        warm_up(runner, max_rows=256, n_ctx=4096, max_tokens=512)
    assert runner.asked == (256, 4096, 512)
    assert "warmed up 3 kinds of steps" in caplog.text


def test_a_wing_without_a_warm_up_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        warm_up(Runner(0), max_rows=1, n_ctx=1, max_tokens=1)
    assert caplog.text == ""
