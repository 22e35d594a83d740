from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.engine.async_engine import AsyncEngine, EngineOptions, Generation
from service.engine.errors import (
    ContextLengthExceeded,
    Draining,
    EngineDead,
    GenerationFailed,
    InvalidParameter,
    ModelLoading,
    QueueFull,
)
from service.engine.plan import StepPlan
from service.engine.prompt import ChatPrompt, Message, TextPrompt, TokenPrompt
from service.engine.request import Delta, FinishReason, Limits, SamplingParams
from tests.service.engine.fakes import endless, hashed, make_fake_engine

PATIENCE_S = 10.0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60.0))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[AsyncEngine]:
    engine = make_fake_engine(**settings)
    try:
        await engine.wait_ready()
        yield engine
    finally:
        assert engine.shutdown(), "the engine thread did not end"


async def ask(
    engine: AsyncEngine, text: str = "hello", *, seed: int = 1, max_tokens: int = -1, n_ctx: int = 128, id: str = "r"
) -> Generation:
    limits = Limits(n_ctx=n_ctx, n_batch=64, max_tokens=max_tokens)
    return await engine.open(TextPrompt(text), SamplingParams(seed=seed), limits, id)


async def read(generation: Generation) -> Delta:
    whole = Delta()
    async with generation:
        async for delta in generation:
            whole = whole.then(delta)
    return whole


async def settle(engine: AsyncEngine) -> None:
    """Wait until the engine has let go of everything."""
    until = time.monotonic() + PATIENCE_S
    while any(engine.stats()[gauge] for gauge in ("running", "waiting", "inbox", "blocks_used", "open")):
        assert time.monotonic() < until, f"never back to baseline: {engine.stats()}"
        await asyncio.sleep(0.002)
    assert engine.stats()["idle_leaks"] == 0


class Gate:
    """A `before_step` that lets steps through one by one, or all once opened."""

    def __init__(self) -> None:
        self.is_open = False
        self._permits = threading.Semaphore(0)
        self.entered = threading.Event()

    def __call__(self, plan: StepPlan) -> None:
        self.entered.set()
        if not self.is_open:
            assert self._permits.acquire(timeout=PATIENCE_S)

    def let(self, num_steps: int) -> None:
        self._permits.release(num_steps)

    def open(self) -> None:
        self.is_open = True
        self._permits.release(1)


def test_a_chat_is_answered() -> None:
    async def test() -> None:
        async with serving() as engine:
            chat = ChatPrompt((Message("system", "be kind"), Message("user", "hällo")))
            whole = await read(await engine.open(chat, SamplingParams(seed=1), Limits(128, 64), "r"))
            assert (whole.text, whole.finish, whole.stop_kind) == ("hällo", FinishReason.STOP, "eos")
            await settle(engine)

    run(test)


def test_many_at_once_get_what_each_gets_alone() -> None:
    async def test() -> None:
        texts = [f"request {i} " * (i % 7 + 1) for i in range(40)]
        async with serving(max_queue=100, choose=hashed, num_blocks=40, max_running=6) as engine:
            together = await asyncio.gather(*[read(await ask(engine, text, max_tokens=30)) for text in texts])
            for text, whole in zip(texts, together, strict=True):
                alone = await read(await ask(engine, text, max_tokens=30))
                assert (alone.text, alone.token_ids, alone.finish) == (whole.text, whole.token_ids, whole.finish)
            await settle(engine)

    run(test)


def test_requests_are_refused_with_the_reason_and_leave_no_trace() -> None:
    async def test() -> None:
        async with serving(num_blocks=16, block_tokens=8) as engine:
            with pytest.raises(ContextLengthExceeded):
                await ask(engine, "x" * 127, n_ctx=128)
            with pytest.raises(ContextLengthExceeded, match="at least"):
                await ask(engine, "x" * 100_000)
            with pytest.raises(InvalidParameter, match="KV pool"):
                await ask(engine, "x", n_ctx=1000)
            with pytest.raises(InvalidParameter, match="vocabulary"):
                await engine.open(TokenPrompt((1, 999)), SamplingParams(seed=1), Limits(8, 8), "r")
            biased = SamplingParams(seed=1, logit_bias=((5000, 1.0),))
            with pytest.raises(InvalidParameter, match="vocabulary") as caught:
                await engine.open(TextPrompt("x"), biased, Limits(8, 8), "r")
            assert caught.value.param == "logit_bias"
            whole = await read(await ask(engine, "x" * 126, n_ctx=128, max_tokens=-1))
            assert (whole.num_generated, whole.finish) == (1, FinishReason.LENGTH)
            await settle(engine)

    run(test)


def test_requests_with_equal_ids_do_not_mix() -> None:
    async def test() -> None:
        async with serving() as engine:
            first, second = await ask(engine, "one", id="same"), await ask(engine, "two", id="same")
            assert [(await read(one)).text for one in (first, second)] == ["one", "two"]

    run(test)


def test_a_full_queue_refuses_and_a_closed_generation_makes_room() -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(max_running=2, max_queue=1, before_step=gate, choose=endless) as engine:
            opened = [await ask(engine) for _ in range(3)]
            with pytest.raises(QueueFull) as caught:
                await ask(engine)
            assert caught.value.max_queue == 1
            assert caught.value.retry_after_s > 0
            await opened.pop().aclose()
            opened.append(await ask(engine))
            for generation in opened:
                await generation.aclose()
            gate.open()
            await settle(engine)

    run(test)


def test_the_permit_lives_as_long_as_the_generation_even_when_finished() -> None:
    async def test() -> None:
        async with serving(max_running=1, max_queue=1) as engine:
            first, second = await ask(engine), await ask(engine)
            while not (first.is_finished and second.is_finished):
                await asyncio.sleep(0.001)
            with pytest.raises(QueueFull):
                await ask(engine)
            await first.aclose()
            await first.aclose()
            await (await ask(engine)).aclose()
            await second.aclose()
            await settle(engine)

    run(test)


def test_a_queue_without_bound_takes_everything() -> None:
    async def test() -> None:
        async with serving(max_queue=0, max_running=1) as engine:
            opened = [await ask(engine, "ab") for _ in range(100)]
            assert {(await read(one)).text for one in opened} == {"ab"}

    run(test)


def test_closing_aborts_within_one_step_running_or_queued() -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(max_running=1, before_step=gate, choose=endless) as engine:
            running, queued = await ask(engine), await ask(engine)
            gate.let(2)
            assert (await running.next()) is not None
            await asyncio.to_thread(gate.entered.wait)
            await queued.aclose()
            await running.aclose()
            gate.let(1)
            await settle(engine)
            assert int(engine.stats()["steps"]) <= 4
            gate.open()

    run(test)


def test_a_request_closed_before_the_engine_took_it_in_is_never_seen() -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(max_running=4, before_step=gate, choose=endless) as engine:
            running = await ask(engine)
            await asyncio.to_thread(gate.entered.wait)
            late = [await ask(engine) for _ in range(3)]
            for generation in late:
                await generation.aclose()
            assert engine.stats()["inbox"] == 0
            await running.aclose()
            gate.open()
            await settle(engine)

    run(test)


def test_cancelling_a_request_that_is_being_tokenized_gives_the_permit_back() -> None:
    async def test() -> None:
        async with serving() as engine:
            opening = [asyncio.create_task(ask(engine, "x" * 100)) for _ in range(4)]
            await asyncio.sleep(0)
            for task in opening:
                task.cancel()
            results = await asyncio.gather(*opening, return_exceptions=True)
            for result in results:
                if isinstance(result, Generation):
                    await result.aclose()
            await settle(engine)

    run(test)


def test_a_cancellation_storm_leaves_nothing_behind_and_disturbs_nobody() -> None:
    async def test() -> None:
        rng = random.Random(5)
        async with serving(
            max_queue=64, max_running=5, num_blocks=40, choose=endless, before_step=lambda plan: time.sleep(2e-4)
        ) as engine:

            async def fickle(i: int) -> None:
                generation = await ask(engine, f"{i % 5} " * 20, max_tokens=60, n_ctx=128)
                async with generation:
                    for _ in range(rng.randrange(4)):
                        await generation.next()

            async def steady(i: int) -> Delta:
                return await read(await ask(engine, f"{i % 5} " * 20, seed=i, max_tokens=40))

            steadies = [asyncio.create_task(steady(i)) for i in range(4)]
            for _ in range(6):
                storm = [asyncio.create_task(fickle(i)) for i in range(40)]
                await asyncio.sleep(0.003)
                for task in rng.sample(storm, 20):
                    task.cancel()
                await asyncio.gather(*storm, return_exceptions=True)
            together = await asyncio.gather(*steadies)
            await settle(engine)
            for i, whole in enumerate(together):
                alone = await steady(i)
                assert (alone.text, alone.token_ids) == (whole.text, whole.token_ids)
            await settle(engine)

    run(test)


def test_a_reader_that_never_comes_holds_up_nobody_and_costs_one_merged_delta() -> None:
    async def test() -> None:
        async with serving(choose=endless) as engine:
            lazy = await ask(engine, max_tokens=100)
            assert (await read(await ask(engine, max_tokens=100))).num_generated == 100
            while not lazy.is_finished:
                await asyncio.sleep(0.001)
            delta = await lazy.next()
            assert delta is not None
            assert (len(delta.token_ids), delta.finish) == (100, FinishReason.LENGTH)
            assert await lazy.next() is None
            await lazy.aclose()

    run(test)


def test_while_the_event_loop_is_blocked_deltas_merge_into_one_call() -> None:
    async def test() -> None:
        async with serving(choose=endless) as engine:
            generation = await ask(engine, max_tokens=100)
            until = time.monotonic() + PATIENCE_S
            while engine.stats()["generated_tokens"] != 100:  # blocks the loop on purpose
                assert time.monotonic() < until
                time.sleep(0.001)
            delta = await generation.next()
            assert delta is not None
            assert delta.num_generated == 100
            await generation.aclose()

    run(test)


def test_a_reader_in_another_task_is_woken_when_the_generation_is_closed() -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(before_step=gate) as engine:
            generation = await ask(engine)
            reader = asyncio.create_task(generation.next())
            await asyncio.sleep(0)
            await generation.aclose()
            delta = await reader
            assert delta is not None
            assert delta.finish is FinishReason.ABORT
            gate.open()
            await settle(engine)

    run(test)


def test_nothing_is_taken_before_the_model_is_loaded() -> None:
    async def test() -> None:
        may_load = threading.Event()
        engine = make_fake_engine(before_load=lambda: assert_(may_load.wait(PATIENCE_S)))
        assert engine.stats()["state"] == "loading"
        for refused in (engine.raise_if_unavailable, lambda: engine.info):
            with pytest.raises(ModelLoading):
                refused()
        with pytest.raises(ModelLoading):
            await ask(engine)
        may_load.set()
        await engine.wait_ready()
        assert engine.state == "ready"
        assert engine.info.model_id == "fake"
        assert engine.shutdown()

    run(test)


def assert_(condition: bool) -> None:
    assert condition


def test_a_model_that_cannot_be_loaded_is_reported_to_whoever_waits() -> None:
    def fail() -> None:
        raise ValueError("no such checkpoint")

    async def test() -> None:
        engine = make_fake_engine(before_load=fail)
        with pytest.raises(EngineDead) as caught:
            await engine.wait_ready()
        assert "no such checkpoint" in caught.value.reason
        assert isinstance(caught.value.__cause__, ValueError)
        assert engine.state == "dead"
        with pytest.raises(EngineDead):
            await ask(engine)
        assert engine.shutdown()

    run(test)


def test_one_bad_request_fails_and_the_others_go_on() -> None:
    def raise_for_bang(plan: StepPlan) -> None:
        if any(ord("!") in row.request.prompt_ids for row in plan.rows):
            raise ValueError("bang")

    async def test() -> None:
        async with serving(before_step=raise_for_bang) as engine:
            opened = [await ask(engine, text) for text in ("one", "two!", "three")]
            wholes = [await read(generation) for generation in opened]
            assert [whole.text for whole in wholes] == ["one", "", "three"]
            assert isinstance(wholes[1].error, GenerationFailed)
            assert engine.state == "ready"
            await settle(engine)

    run(test)


def test_a_forward_that_always_raises_ends_every_request_and_the_engine() -> None:
    def broken(plan: StepPlan) -> None:
        raise RuntimeError("device lost")

    async def test() -> None:
        gate = Gate()

        def first_wait_then_break(plan: StepPlan) -> None:
            gate(plan)
            broken(plan)

        async with serving(before_step=first_wait_then_break) as engine:
            opened = [await ask(engine) for _ in range(8)]
            gate.is_open = True
            gate.let(100)
            for whole in [await read(generation) for generation in opened]:
                assert whole.finish is FinishReason.ERROR
                assert isinstance(whole.error, EngineDead)
            assert engine.state == "dead"
            with pytest.raises(EngineDead) as caught:
                await ask(engine)
            assert "device lost" not in str(caught.value)

    run(test)


def test_a_step_that_never_returns_is_declared_dead() -> None:
    async def test() -> None:
        gate, hung = Gate(), threading.Event()
        options = EngineOptions(watchdog_soft_s=60.0, watchdog_hard_s=0.1)
        engine = make_fake_engine(before_step=gate, options=options, on_hang=hung.set)
        await engine.wait_ready()
        generation = await ask(engine)
        whole = await read(generation)
        assert isinstance(whole.error, EngineDead)
        assert await asyncio.to_thread(hung.wait, PATIENCE_S)
        assert engine.state == "dead"
        with pytest.raises(EngineDead):
            engine.raise_if_unavailable()
        assert not engine.shutdown(timeout_s=0.01)
        gate.open()
        assert engine.shutdown()

    run(test)


def test_an_idle_engine_is_not_taken_for_a_hung_one() -> None:
    async def test() -> None:
        async with serving(options=EngineOptions(watchdog_soft_s=60.0, watchdog_hard_s=0.2)) as engine:
            await read(await ask(engine))
            await asyncio.sleep(0.5)
            assert engine.state == "ready"
            assert engine.stats()["heartbeat_age_s"] == 0.0

    run(test)


def test_draining_lets_running_requests_finish_and_takes_no_new_ones() -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(before_step=gate) as engine:
            reader = asyncio.create_task(read(await ask(engine, "abc")))
            draining = asyncio.create_task(engine.drain(3600.0))
            await asyncio.sleep(0)
            assert engine.state == "draining"
            with pytest.raises(Draining):
                await ask(engine)
            with pytest.raises(Draining):
                engine.raise_if_unavailable()
            gate.open()
            assert await draining
            assert (await reader).text == "abc"

    run(test)


def test_a_request_that_is_being_tokenized_when_draining_begins_is_refused() -> None:
    async def test() -> None:
        async with serving() as engine:
            opened, drained = await asyncio.gather(ask(engine), engine.drain(3600.0), return_exceptions=True)
            assert isinstance(opened, Draining)
            assert drained is True
            await settle(engine)

    run(test)


def test_at_the_drain_deadline_what_runs_gets_a_last_delta_with_an_error() -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(before_step=gate, max_running=1, choose=endless) as engine:
            opened = [await ask(engine) for _ in range(3)]
            gate.let(1)
            assert not await engine.drain(0.05)
            for generation in opened:
                whole = await read(generation)
                assert whole.finish is FinishReason.ERROR
                assert isinstance(whole.error, Draining)
            gate.open()
            await settle(engine)
            assert int(engine.stats()["steps"]) <= 2

    run(test)


def test_draining_an_idle_or_a_loading_engine_returns_at_once() -> None:
    async def test() -> None:
        may_load = threading.Event()
        engine = make_fake_engine(before_load=lambda: assert_(may_load.wait(PATIENCE_S)))
        waiter = asyncio.create_task(engine.wait_ready())
        await asyncio.sleep(0)
        assert await engine.drain(PATIENCE_S)
        with pytest.raises(Draining):
            await waiter
        may_load.set()
        assert engine.shutdown()

    run(test)


def test_shutting_down_ends_what_is_open() -> None:
    async def test() -> None:
        engine = make_fake_engine(choose=endless, before_step=lambda plan: time.sleep(0.001))
        await engine.wait_ready()
        generation = await ask(engine)
        assert engine.shutdown()
        assert isinstance((await read(generation)).error, EngineDead)
        assert engine.state == "dead"
        assert engine.shutdown()

    run(test)


def test_an_engine_may_be_started_before_there_is_an_event_loop_and_outlive_it() -> None:
    engine = make_fake_engine(choose=endless)

    async def leave_something_running() -> None:
        await engine.wait_ready()
        await ask(engine, max_tokens=100)

    asyncio.run(leave_something_running())
    assert engine.shutdown()
