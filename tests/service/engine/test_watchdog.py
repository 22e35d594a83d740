from __future__ import annotations

import threading

from service.engine.watchdog import Watchdog


class Bench:
    """A watchdog over a number that the test sets."""

    def __init__(self, soft_s: float = 10.0, hard_s: float = 50.0) -> None:
        self.busy_s: float | None = None
        self.num_dumps = 0
        self.hangs: list[float] = []
        self.has_hung = threading.Event()
        self.watchdog = Watchdog(
            lambda: self.busy_s, soft_s=soft_s, hard_s=hard_s, on_hang=self.hang, dump=self.count_dump
        )

    def hang(self, busy_s: float) -> None:
        self.hangs.append(busy_s)
        self.has_hung.set()

    def count_dump(self) -> None:
        self.num_dumps += 1

    def look(self, busy_s: float | None) -> bool:
        self.busy_s = busy_s
        return self.watchdog.check()


def test_an_idle_engine_and_short_steps_are_left_alone() -> None:
    bench = Bench()
    assert not any(bench.look(busy_s) for busy_s in (None, 0.0, 9.9, None, 5.0))
    assert (bench.num_dumps, bench.hangs) == (0, [])


def test_a_long_step_is_dumped_once_and_the_next_long_one_again() -> None:
    bench = Bench()
    assert not any(bench.look(busy_s) for busy_s in (11.0, 12.0, 40.0))
    assert bench.num_dumps == 1
    assert not any(bench.look(busy_s) for busy_s in (1.0, 11.0, 12.0))
    assert bench.num_dumps == 2


def test_a_step_past_the_hard_limit_is_reported_as_hung() -> None:
    bench = Bench()
    assert bench.look(51.0)
    assert bench.hangs == [51.0]


def test_the_thread_looks_by_itself_and_may_be_stopped_from_its_own_callback() -> None:
    bench = Bench(soft_s=0.01, hard_s=0.02)
    bench.watchdog.start()
    bench.busy_s = 1.0
    assert bench.has_hung.wait(5.0)
    bench.watchdog.stop()
    assert (bench.num_dumps, bench.hangs) == (1, [1.0])
