"""n_ctx, n_batch and n_threads of a request, the length of its output, and what a step of the engine makes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.engine.plan import StepPlan
from tests.server.asking import LEAST, STORY, ask, native
from tests.server.live import Live, wait_until
from tests.service.api.asgi import error_of, events_of
from tests.service.engine.fakes import endless

GENERATIONS = [path for path in LEAST if path not in ("/v1/responses", "/v1/messages")]


class Watched(Live):
    """A server over a fake engine of 4 threads and 16 prompt tokens a step; `plans`: what its steps did."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(before_step=self._see, choose=endless, n_ctx=100, n_batch=16, n_threads=4)

    def _see(self, plan: StepPlan) -> None:
        self.gate.wait(10)
        self.plans.append(plan)

    def counts(self, **fields: Any) -> list[int]:
        """Tokens computed in each step of one request."""
        self.plans.clear()
        ask(self, "/completion", cache_prompt=False, **fields)
        return [row.count for plan in self.plans for row in plan.rows]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with Watched() as server:
        yield server


def test_n_ctx_caps_prompt_and_output_together(model: Live) -> None:
    prompt = list(range(70, 80))
    for n_ctx in (11, 20, 64):
        answer = native(model, prompt=prompt, n_predict=-1, n_ctx=n_ctx, ignore_eos=True)
        assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (10, n_ctx - 10)
        assert (answer["stop_type"], answer["truncated"]) == ("limit", True)
        assert answer["generation_settings"]["n_ctx"] == n_ctx
    for n_ctx in (1, 9):
        error = error_of(model.post("/completion", {"prompt": prompt, "n_ctx": n_ctx}), 400, "context_length_exceeded")
        assert (error["n_prompt_tokens"], error["n_ctx"]) == (10, n_ctx)


def test_above_the_ceiling_n_ctx_is_refused_with_the_ceiling(model: Live) -> None:
    most = model.engine.info.n_ctx_max
    assert ask(model, "/completion", n_ctx=most, n_predict=1)["generation_settings"]["n_ctx"] == most
    error = error_of(model.post("/completion", {"prompt": "a", "n_ctx": most + 1}), 400, "invalid_parameter")
    assert error["param"] == "n_ctx"
    assert str(most) in error["message"]


def test_unlimited_is_bounded_by_the_context_and_ends_with_length(watched: Watched) -> None:
    for path in GENERATIONS:
        for fields in ({}, {"max_tokens": -1}, {"max_tokens": 10**9}):
            answer = ask(watched, path, **fields)
            assert answer["usage"]["total_tokens"] == 100
            reason = answer["choices"][0]["finish_reason"] if "choices" in answer else answer["stop_type"]
            assert reason == ("length" if "choices" in answer else "limit")


def test_n_predict_0_evaluates_the_prompt_and_generates_nothing(model: Live) -> None:
    prompt = [60 + i % 50 for i in range(70)]
    answer = native(model, prompt=prompt, n_predict=0)
    assert (answer["content"], answer["tokens"], answer["tokens_predicted"]) == ("", [], 0)
    assert (answer["stop_type"], answer["truncated"]) == ("limit", False)
    assert native(model, prompt=prompt, n_predict=1)["tokens_cached"] > 0  # what it computed is there
    streamed = events_of(ask(model, "/completion", prompt=prompt, n_predict=0, stream=True))
    assert [(event["content"], event["stop"]) for event in streamed] == [("", True)]
    chat = ask(model, "/v1/chat/completions", max_tokens=0)["choices"][0]
    assert (chat["message"]["content"], chat["finish_reason"]) == ("", "length")


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_tokens": 3, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 3, "max_completion_tokens": 5, "n_predict": 7}, 7),
        ({"max_tokens": 9, "n_predict": 2}, 2),
    ],
    ids=str,
)
def test_the_wishes_for_a_length_have_an_order(model: Live, fields: dict[str, int], length: int) -> None:
    for path in GENERATIONS:
        answer = ask(model, path, temperature=0, ignore_eos=True, **fields)
        assert answer["usage"]["completion_tokens"] == length
        assert answer["generation_settings"]["n_predict"] == length


def test_n_batch_caps_the_prompt_tokens_of_a_step(watched: Watched) -> None:
    body = {"prompt": "x" * 29, "n_predict": 2}  # 30 tokens with the one that starts a text
    assert watched.counts(**body, n_batch=7) == [7, 7, 7, 7, 2, 1]
    assert watched.counts(**body, n_batch=16) == [16, 14, 1]
    assert watched.counts(**body) == [16, 14, 1]
    assert watched.counts(**body, n_batch=10**9) == [16, 14, 1]


@pytest.mark.parametrize(("wish", "effective"), [(7, 7), (16, 16), (17, 16), (10**9, 16), (None, 16)])
def test_the_effective_n_batch_is_told(watched: Watched, wish: int | None, effective: int) -> None:
    for path in GENERATIONS:
        assert ask(watched, path, n_batch=wish, max_tokens=1)["generation_settings"]["n_batch"] == effective


@pytest.mark.parametrize(("wish", "effective"), [(1, 1), (3, 3), (4, 4), (5, 4), (10**9, 4), (None, 4)])
def test_n_threads_are_those_of_its_steps_and_at_most_the_servers(
    watched: Watched, wish: int | None, effective: int
) -> None:
    watched.plans.clear()
    answer = ask(watched, "/completion", n_threads=wish, n_predict=3)
    assert answer["generation_settings"]["n_threads"] == effective
    assert {plan.num_threads for plan in watched.plans} == {effective}


def test_a_step_has_the_most_threads_that_any_of_its_requests_asked_for(watched: Watched) -> None:
    watched.plans.clear()
    watched.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, watched, "/completion", n_threads=wish, n_predict=20) for wish in (1, 3)]
        wait_until(lambda: watched.engine.stats()["open"] == 2)
        watched.gate.set()
        for one in asked:
            one.result()
    shared = {plan.num_threads for plan in watched.plans if len(plan.rows) == 2}
    assert shared == {3}


def test_neither_n_batch_nor_n_threads_moves_a_token(model: Live) -> None:
    fields = {"prompt": STORY * 3, "n_predict": 20, "temperature": 1.5, "seed": 2, "cache_prompt": False}
    tokens = [
        native(model, **fields, n_batch=n_batch, n_threads=n_threads)["tokens"]
        for n_batch in (1, 7, 64, None)
        for n_threads in (1, 2, None)
    ]
    assert tokens == [tokens[0]] * 12
    assert len(set(tokens[0])) > 5
