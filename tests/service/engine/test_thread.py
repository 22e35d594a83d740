from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from service.engine.engine import Engine
from service.engine.errors import EngineDead, ModelLoading
from service.engine.request import Delta, Limits, Request, SamplingParams
from service.engine.thread import EngineInfo, EngineThread, Loaded
from tests.service.engine.fakes import FakeTokenizer, endless, make_engine

PATIENCE_S = 10.0


class Bench:
    """An EngineThread whose announcements are counted, and whose clock counts how often the thread turned."""

    def __init__(self) -> None:
        self.num_turns = 0
        self.num_announced = 0
        self.announced = threading.Event()
        self.states: list[str] = []
        self.thread = EngineThread(self.note_state, self.note_deltas, self.tick)

    def tick(self) -> float:
        self.num_turns += 1
        return float(self.num_turns)

    def note_state(self) -> None:
        self.states.append(self.thread.state)

    def note_deltas(self) -> None:
        self.num_announced += 1
        self.announced.set()

    def load(self) -> Loaded:
        return Loaded(make_engine(choose=endless), FakeTokenizer(), EngineInfo("fake", 0, 261, 64, 512, 64, 2, 4, 512))

    def start(self) -> None:
        self.thread.start(self.load)
        self.wait_until(lambda: self.thread.state == "ready")

    @property
    def engine(self) -> Engine:
        assert self.thread.loaded is not None
        return self.thread.loaded.engine

    def wait_until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.001)

    def end(self) -> None:
        self.thread.die("test over")
        assert self.thread.join(PATIENCE_S)


def ask(id: str, max_tokens: int = 20) -> Request:
    return Request(id, (1, 2, 3), SamplingParams(seed=1), Limits(64, 64, max_tokens=max_tokens))


def test_deltas_are_announced_once_until_somebody_collects_them() -> None:
    bench = Bench()
    bench.start()
    bench.thread.submit(ask("a"))
    bench.wait_until(lambda: bench.engine.stats()["generated_tokens"] == 20)
    bench.wait_until(lambda: bench.thread.busy_s is None)
    assert bench.num_announced == 1
    collected = bench.thread.collect()
    assert collected["a"].num_generated == 20
    assert bench.thread.collect() == {}
    bench.thread.submit(ask("b", max_tokens=1))
    bench.wait_until(lambda: bench.num_announced == 2)
    assert isinstance(bench.thread.collect()["b"], Delta)
    bench.end()


def test_an_idle_thread_does_not_turn() -> None:
    bench = Bench()
    bench.start()
    bench.thread.submit(ask("a"))
    assert bench.announced.wait(PATIENCE_S)
    bench.wait_until(lambda: bench.thread.busy_s is None and not bench.engine.has_work)
    num_turns = bench.num_turns
    time.sleep(0.05)
    assert bench.num_turns == num_turns
    bench.end()


def test_aborting_what_was_not_taken_in_leaves_the_inbox_empty() -> None:
    thread = EngineThread(lambda: None, lambda: None)
    for i in range(100):
        thread.submit(ask(str(i)))
        thread.abort(str(i))
    assert thread.inbox_size == 0


def test_states_only_go_forward_and_the_first_reason_of_death_stays() -> None:
    bench = Bench()
    with pytest.raises(ModelLoading):
        bench.thread.require()
    bench.start()
    bench.thread.drain()
    bench.thread.die("first")
    bench.thread.die("second")
    bench.thread.drain()
    assert bench.states == ["ready", "draining", "dead"]
    with pytest.raises(EngineDead) as caught:
        bench.thread.raise_if_unavailable()
    assert caught.value.reason == "first"
    assert bench.thread.death() is not bench.thread.death()
    assert bench.thread.join(PATIENCE_S)


def test_an_error_of_our_own_is_the_end_and_the_reason_says_which() -> None:
    bench = Bench()
    bench.start()
    bench.thread.submit(Request("unchecked", (1,), SamplingParams(seed=1), Limits(n_ctx=10_000, n_batch=64)))
    assert bench.thread.join(PATIENCE_S)
    assert "InvalidParameter" in bench.thread.death().reason
    assert bench.states == ["ready", "dead"]
