"""Notices an engine step that does not come back.

A step that hangs inside a kernel raises nothing and cannot be interrupted from Python. So a second thread looks at how
long the engine thread has been busy: past the soft limit it dumps every thread's stack, once for that step; past the
hard limit it calls `on_hang`, once for good. An idle engine is not busy, and loading a model may take as long as it
takes. (SGLang's watchdog, with vLLM's lesson that health is engine progress, not an open port.)
"""

from __future__ import annotations

import faulthandler
import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


def dump_stacks() -> None:
    """Every thread's stack, on standard error."""
    faulthandler.dump_traceback(all_threads=True)


class Watchdog:
    """`busy_s`: seconds for which the present step has been running, None when there is none."""

    def __init__(
        self,
        busy_s: Callable[[], float | None],
        *,
        soft_s: float,
        hard_s: float,
        on_hang: Callable[[float], None],
        dump: Callable[[], None] = dump_stacks,
    ) -> None:
        self._busy_s = busy_s
        self._soft_s = soft_s
        self._hard_s = hard_s
        self._on_hang = on_hang
        self._dump = dump
        self._last_s = 0.0
        self._has_dumped = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; from the thread itself, once it is done."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._soft_s / 4, self._hard_s / 4)):
            if self.check():
                return

    def check(self) -> bool:
        """Look once; True if the engine hangs for good, and `on_hang` was called with the seconds."""
        busy_s = self._busy_s() or 0.0
        if busy_s < self._last_s:
            self._has_dumped = False  # another step, or none
        self._last_s = busy_s
        if busy_s >= self._soft_s and not self._has_dumped:
            self._has_dumped = True
            logger.error("an engine step has been running for %.1f s; stacks follow", busy_s)
            self._dump()
        if busy_s < self._hard_s:
            return False
        self._on_hang(busy_s)
        return True
