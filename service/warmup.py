"""The bar of a warm-up: kernels that are compiled and decode steps that are captured before the server is ready.

Nothing is shown where there is nothing to do (the CPU wing). Knows no wing: the runner says how far it is.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


class WarmRunner(Protocol):
    """What is warmed up."""

    def warm_up(self, max_rows: int, n_ctx: int, max_tokens: int, progress: Callable[[int, int], None]) -> None: ...


def warm_up(runner: WarmRunner, *, max_rows: int, n_ctx: int, max_tokens: int) -> None:
    """Warm the runner up for steps of this size, with a bar on a terminal and log lines elsewhere."""
    started_s = time.monotonic()
    pieces = 0

    def count(done: int, total: int) -> None:
        nonlocal pieces
        pieces = done
        show(done, total)

    with bar() if sys.stderr.isatty() else log_lines() as show:
        runner.warm_up(max_rows, n_ctx, max_tokens, count)
    if pieces:
        logger.info("warmed up %d kinds of steps in %.1f s", pieces, time.monotonic() - started_s)


@contextmanager
def bar() -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("warming up"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextmanager
def log_lines() -> Iterator[Callable[[int, int], None]]:
    """A line now and then: captures take tenths of a second each, the first compilations seconds."""
    logged_s = time.monotonic()

    def log(done: int, total: int) -> None:
        nonlocal logged_s
        if time.monotonic() - logged_s > LOG_EVERY_S:
            logged_s = time.monotonic()
            logger.info("warming up: %d of %d kinds of steps", done, total)

    yield log
