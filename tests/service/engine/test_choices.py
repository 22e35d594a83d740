"""Several generations of one request: admitted all or none, read as one stream, ended together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.engine.async_engine import AsyncEngine
from service.engine.choices import Choices
from service.engine.errors import ContextLengthExceeded, Draining, InvalidParameter, QueueFull
from service.engine.plan import StepPlan
from service.engine.prompt import Prompt, TextPrompt, TokenPrompt
from service.engine.request import NOTHING, Delta, FinishReason, Limits, Report, SamplingParams
from tests.service.engine.fakes import endless, hashed, make_fake_engine

PATIENCE_S = 10.0
PARAMS = SamplingParams(seed=5)


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


async def ask(engine: AsyncEngine, *texts: str, n: int = 1, max_tokens: int = -1, report: Report = NOTHING) -> Choices:
    limits = Limits(n_ctx=128, n_batch=64, max_tokens=max_tokens)
    return await engine.open_all([TextPrompt(text) for text in texts], PARAMS, limits, "r", n=n, report=report)


async def read(choices: Choices) -> list[Delta]:
    """Everything of each generation, by place."""
    whole = [Delta()] * len(choices.generations)
    while (step := await choices.next()) is not None:
        place, delta = step
        assert whole[place].finish is None, "a delta after the final one"
        whole[place] = whole[place].then(delta)
    await choices.aclose()
    return whole


async def settle(engine: AsyncEngine) -> None:
    """Wait until the engine has let go of everything."""
    until = time.monotonic() + PATIENCE_S
    while any(engine.stats()[gauge] for gauge in ("running", "waiting", "inbox", "blocks_used", "open")):
        assert time.monotonic() < until, f"never back to baseline: {engine.stats()}"
        await asyncio.sleep(0.002)
    assert engine.stats()["idle_leaks"] == 0


def texts(deltas: Sequence[Delta]) -> list[str]:
    return [delta.text for delta in deltas]


def test_choices_of_prompts_come_prompt_major_and_say_what_each_says_alone() -> None:
    async def test() -> None:
        async with serving(choose=hashed, max_queue=100) as engine:
            prompts = [f"prompt number {i} " * 3 for i in range(4)]
            together = texts(await read(await ask(engine, *prompts, n=3, max_tokens=25)))
            alone = [texts(await read(await ask(engine, prompt, n=3, max_tokens=25))) for prompt in prompts]
            assert together == [text for of_prompt in alone for text in of_prompt]
            assert len(set(together)) == 12
            single = await engine.open(TextPrompt(prompts[2]), PARAMS, Limits(128, 64, max_tokens=25), "r")
            whole = Delta()
            async with single:
                async for delta in single:
                    whole = whole.then(delta)
            assert whole.text == together[6]
            await settle(engine)

    run(test)


def test_the_choices_of_a_prompt_share_its_blocks() -> None:
    async def test() -> None:
        async with serving(choose=endless, max_running=8, max_queue=100) as engine:
            whole = await read(await ask(engine, "x" * 60, n=8, max_tokens=5))
            assert [delta.num_cached for delta in whole] == [0] + [56] * 7
            assert engine.stats()["prompt_tokens"] == 61 + 7 * 5
            await settle(engine)

    run(test)


def test_a_queue_without_room_for_all_refuses_all_and_keeps_none() -> None:
    async def test() -> None:
        gate = threading.Event()

        def wait(plan: StepPlan) -> None:
            gate.wait(PATIENCE_S)

        async with serving(max_running=2, max_queue=4, before_step=wait) as engine:
            first = await ask(engine, "a", n=4)
            with pytest.raises(QueueFull):
                await ask(engine, "b", n=3)
            assert engine.stats()["open"] == 4
            second = await ask(engine, "c", n=2)
            with pytest.raises(QueueFull):
                await ask(engine, "d")
            gate.set()
            assert texts(await read(first)) == ["a"] * 4
            assert texts(await read(second)) == ["c"] * 2
            await settle(engine)

    run(test)


def test_more_than_the_server_ever_lets_in_is_the_requests_own_fault() -> None:
    async def test() -> None:
        async with serving(max_running=2, max_queue=4) as engine:
            with pytest.raises(InvalidParameter, match=r"7 generations.* 6") as caught:
                await ask(engine, "a", n=7)
            assert caught.value.param == "n"
            assert texts(await read(await ask(engine, "a", n=6))) == ["a"] * 6
            await settle(engine)
        async with serving(max_running=2, max_queue=0) as engine:
            assert texts(await read(await ask(engine, "a", n=7))) == ["a"] * 7

    run(test)


def test_one_prompt_that_is_refused_refuses_all_and_gives_every_permit_back() -> None:
    async def test() -> None:
        async with serving() as engine:
            with pytest.raises(ContextLengthExceeded):
                await ask(engine, "a", "b" * 500, "c", n=2)
            bad: list[Prompt] = [TextPrompt("a"), TokenPrompt((1, 999))]
            with pytest.raises(InvalidParameter, match="vocabulary"):
                await engine.open_all(bad, PARAMS, Limits(128, 64), "r", n=2)
            assert engine.stats()["open"] == 0
            assert engine.stats()["steps"] == 0
            await settle(engine)

    run(test)


def test_cancelling_while_prompts_are_tokenized_gives_every_permit_back() -> None:
    async def test() -> None:
        async with serving() as engine:
            opening = asyncio.create_task(ask(engine, *["x" * 100] * 4, n=2))
            await asyncio.sleep(0)
            assert engine.stats()["open"] == 8
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await settle(engine)

    run(test)


@pytest.mark.parametrize("max_running", [1, 3, 8])
def test_closing_ends_all_of_them_running_or_queued(max_running: int) -> None:
    async def test() -> None:
        async with serving(choose=endless, step_s=0.002, max_running=max_running) as engine:
            choices = await ask(engine, "a", "b", n=4)
            await choices.next()
            await choices.aclose()
            await choices.aclose()
            await settle(engine)
            assert engine.stats()["generated_tokens"] < 8 * 100

    run(test)


def test_nobody_is_passed_over_while_others_always_have_something() -> None:
    async def test() -> None:
        async with serving(choose=endless, step_s=0.001, max_running=4) as engine:
            choices = await ask(engine, "a", n=4)
            places = []
            for _ in range(12):
                step = await choices.next()
                assert step is not None
                places.append(step[0])
                await asyncio.sleep(0.005)
            assert [places.count(place) for place in range(4)] == [3] * 4
            await choices.aclose()
            await settle(engine)

    run(test)


def test_at_the_drain_deadline_each_unfinished_choice_gets_the_error() -> None:
    async def test() -> None:
        async with serving(choose=endless, step_s=0.01) as engine:
            choices = await ask(engine, "a", n=3)
            assert not await engine.drain(0.05)
            whole = await read(choices)
            assert [delta.finish for delta in whole] == [FinishReason.ERROR] * 3
            assert all(isinstance(delta.error, Draining) for delta in whole)

    run(test)


def test_the_report_reaches_every_choice() -> None:
    async def test() -> None:
        async with serving() as engine:
            whole = await read(await ask(engine, "ab", n=2, report=Report(1, 2)))
            assert [(len(delta.logprobs), len(delta.prompt_logprobs)) for delta in whole] == [(3, 2)] * 2

    run(test)
