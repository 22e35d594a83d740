"""What an output may depend on: the checkpoint, the settings that are part of the model, and the request. Nothing else.

Whole engines with a tiny checkpoint. The same requests are run in one way and in another; the tokens must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from bitnet_model.ops import CacheDtype, DecodeFunction, DrawFunction, Ops
from service.engine.blocks import BLOCK_TOKENS, BlockPool
from service.engine.draws import num_ahead, num_guessable
from service.engine.engine import Engine
from service.engine.guesser import Guesser
from service.engine.plan import Pending, Runner, StepPlan
from service.engine.request import Delta, FinishReason, Limits, Request, SamplingParams
from service.engine.runner import ModelRunner
from service.engine.scheduler import SchedulerLimits

N_CTX = 128
NUM_NEW = 36
NUM_PROMPT = 2 * BLOCK_TOKENS  # with NUM_NEW more, a request grows by two blocks
GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 1.3, "top_k": 60, "typical_p": 0.98, "top_p": 0.97, "min_p": 0.01}
EVERY: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "frequency_penalty": 0.5, "repeat_last_n": -1}
CHAIN: dict[str, Any] = {
    "temperature": 1.5,
    "top_k": 50,
    "dynatemp_range": 0.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.02,
    "dry_multiplier": 2.0,
    "dry_allowed_length": 1,
}
MIROSTAT: dict[str, Any] = {"temperature": 1.4, "mirostat": 2, "mirostat_eta": 0.5, "top_n_sigma": 2.0}
PLAIN: dict[str, Any] = {"temperature": 1.2, "top_k": 30, "presence_penalty": 0.3, "logit_bias": ((7, 3.0), (9, -9.0))}
ALL = (GREEDY, SEEDED, EVERY, CHAIN, MIROSTAT, PLAIN)


@dataclass(frozen=True)
class Setup:
    ops: Ops
    model: Model
    kv_dtype: CacheDtype


@pytest.fixture(scope="module", params=[("tiny_packed", "bf16"), ("tiny_llama", "int8")], ids=lambda p: "-".join(p))
def setup(request: pytest.FixtureRequest, ops: Ops) -> Setup:
    name, kv_dtype = request.param
    folder: Path = request.getfixturevalue(name)
    return Setup(ops, load_model(folder, ops, head_dtype="int8"), kv_dtype)


class NoText:
    """Nothing ends a generation but its limit, and nothing has text."""

    eos_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return b""


class EndsWith(NoText):
    """The same, but these tokens end it too."""

    def __init__(self, eos_ids: frozenset[int]) -> None:
        self.eos_ids = eos_ids


class Poisoned:
    """The model with NaN in every slot of a new cache."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def new_cache(self, num_blocks: int, block_tokens: int, dtype: CacheDtype) -> Any:
        model, num_slots = self.model, num_blocks * block_tokens
        cache = model.new_cache(num_blocks, block_tokens, dtype)
        width = (model.plan.num_heads + 2 * model.plan.num_kv_heads) * model.plan.head_dim
        positions = torch.zeros(num_slots, dtype=torch.int64)
        for layer in range(len(model.plan.layers)):
            nan = torch.full((num_slots, width), torch.nan)
            model.ops.rope_write_kv(nan, positions, model.plan.rope, cache, layer, torch.arange(num_slots))
        return cache

    def forward(self, batch: ForwardBatch, cache: Any) -> Tensor:
        return self.model.forward(batch, cache)

    def logits(self, x: Tensor) -> Tensor:
        return self.model.logits(x)

    @property
    def draw(self) -> DrawFunction | None:
        return self.model.draw

    @property
    def decode(self) -> DecodeFunction | None:
        return self.model.decode

    def top_logits(self, x: Tensor, k: int, extra_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.top_logits(x, k, extra_ids)


class Flaky:
    """A runner that samples all rows of a step and then raises, unless there is one row only."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def launch(self, plan: StepPlan) -> Pending:
        pending = self.runner.launch(plan)
        if len(plan.rows) > 1:
            raise RuntimeError("too late")
        return pending

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        self.runner.zero_blocks(block_ids)


def engine_of(
    setup: Setup,
    *,
    num_blocks: int = 80,
    poison: bool = False,
    n_threads: int = 2,
    max_rounds: int = 1,
    draft_max: int = 0,
) -> Engine:
    model = Poisoned(setup.model) if poison else setup.model
    runner = ModelRunner(model, setup.ops, num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, kv_dtype=setup.kv_dtype)
    limits = SchedulerLimits(16, 512, n_threads, max_rounds=max_rounds, draft_max=draft_max)
    return Engine(runner, NoText(), BlockPool(num_blocks), limits, clock=lambda: 0.0)


def request_of(
    number: int, params: dict[str, Any], *, num_prompt: int = 0, n_batch: int = 512, n_threads: int | None = None
) -> Request:
    """Request `number`: its prompt is random, of a length of its own."""
    rng = np.random.default_rng(number)
    prompt = rng.integers(0, 480, size=num_prompt or rng.integers(1, 90)).tolist()
    limits = Limits(n_ctx=N_CTX, n_batch=n_batch, n_threads=n_threads, max_tokens=NUM_NEW)
    return Request(f"{number}-{params['temperature']}", tuple(prompt), SamplingParams(seed=number, **params), limits)


def the_requests(n_batch: int = 512, n_threads: int | None = None) -> list[Request]:
    """A greedy, a seeded and a whole-vocabulary one, one with a chain of its own, and one that keeps a state."""
    return [
        request_of(number, params, num_prompt=NUM_PROMPT, n_batch=n_batch, n_threads=n_threads)
        for number, params in enumerate(ALL)
    ]


def others(num: int) -> list[Request]:
    return [request_of(100 + number, ALL[number % len(ALL)]) for number in range(num)]


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, tuple[int, ...]]:
    """The generated tokens of each request; all run together."""
    return {request_id: delta.token_ids for request_id, delta in run_to_the_end(engine, requests).items()}


def run_to_the_end(engine: Engine, requests: Sequence[Request]) -> dict[str, Delta]:
    """All that each request came to, as one delta."""
    whole = {request.id: Delta() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for request_id, delta in engine.step():
            whole[request_id] = whole[request_id].then(delta)
    engine.check_idle()
    assert {(delta.finish, len(delta.token_ids)) for delta in whole.values()} == {(FinishReason.LENGTH, NUM_NEW)}
    return whole


@pytest.fixture(scope="module")
def alone(setup: Setup) -> dict[str, tuple[int, ...]]:
    """The tokens of each of the requests, run by itself in a fresh engine."""
    tokens = {}
    for request in the_requests():
        tokens |= run(engine_of(setup), [request])
    return tokens


def own(tokens: dict[str, tuple[int, ...]], alone: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {request_id: tokens[request_id] for request_id in alone}


def test_the_requests_do_not_all_say_the_same(alone: dict[str, tuple[int, ...]]) -> None:
    assert len(set(alone.values())) == len(ALL)
    assert all(len(set(tokens)) > 3 for tokens in alone.values())


@pytest.mark.parametrize("order", [0, 1, 2])
def test_company_and_its_order_change_nothing(setup: Setup, alone: dict[str, tuple[int, ...]], order: int) -> None:
    crowd = [*the_requests(), *others(11)]
    crowd = [crowd[place] for place in np.random.default_rng(order).permutation(16)]
    assert own(run(engine_of(setup), crowd), alone) == alone


@pytest.mark.parametrize("n_batch", [1, 7, 64])
def test_the_size_of_prompt_chunks_changes_nothing(
    setup: Setup, alone: dict[str, tuple[int, ...]], n_batch: int
) -> None:
    assert run(engine_of(setup), the_requests(n_batch)) == alone


def test_preemption_changes_nothing(setup: Setup, alone: dict[str, tuple[int, ...]]) -> None:
    engine = engine_of(setup, num_blocks=9)
    tokens = run(engine, [*others(2), *the_requests()])
    assert engine.stats()["preemptions"] > 0
    assert own(tokens, alone) == alone


def test_a_row_that_is_run_again_changes_nothing(setup: Setup, alone: dict[str, tuple[int, ...]]) -> None:
    engine = engine_of(setup)
    engine.runner = Flaky(engine.runner)
    assert run(engine, the_requests()) == alone
    assert engine.stats()["rerun_steps"] > NUM_NEW


def test_a_prefix_found_in_the_cache_changes_nothing(setup: Setup, alone: dict[str, tuple[int, ...]]) -> None:
    engine = engine_of(setup)
    assert run(engine, the_requests()) == alone
    again = run_to_the_end(engine, the_requests())
    assert {delta.num_cached for delta in again.values()} == {BLOCK_TOKENS}
    assert {request_id: delta.token_ids for request_id, delta in again.items()} == alone


@pytest.mark.parametrize("max_rounds", [2, 5, 8])
def test_several_rounds_in_a_step_change_nothing(
    setup: Setup, alone: dict[str, tuple[int, ...]], max_rounds: int
) -> None:
    requests = [request for request in the_requests() if num_ahead(request)]
    engine = engine_of(setup, max_rounds=max_rounds)
    tokens = run(engine, requests)
    assert engine.stats()["steps"] < NUM_NEW * 2 / 3
    assert len(tokens) == 2
    assert tokens == {request_id: alone[request_id] for request_id in tokens}


@pytest.mark.parametrize("max_rounds", [1, 3, 8])
def test_rounds_in_company_give_each_what_it_says_alone_up_to_its_end(
    setup: Setup, alone: dict[str, tuple[int, ...]], max_rounds: int
) -> None:
    requests = [request for request in the_requests() if num_ahead(request)]
    company = [request_of(200 + number, params) for number, params in enumerate((GREEDY, PLAIN) * 3)]
    engine = engine_of(setup, max_rounds=max_rounds)
    engine.decoder = EndsWith(frozenset(alone[request.id][20] for request in requests))
    whole = {request.id: Delta() for request in [*requests, *company]}
    for request in [*requests, *company]:
        engine.add(request)
    for _ in range(4):
        for request_id, delta in engine.step():
            whole[request_id] = whole[request_id].then(delta)
    engine.abort(company[0].id)
    while engine.has_work:
        for request_id, delta in engine.step():
            whole[request_id] = whole[request_id].then(delta)
        engine.check_integrity()
    assert engine.check_idle()
    for request in requests:
        expected = alone[request.id]
        end = min(expected.index(token_id) for token_id in engine.decoder.eos_ids & set(expected)) + 1
        assert whole[request.id].token_ids == expected[:end]
        assert whole[request.id].stop_kind == "eos"


@pytest.mark.parametrize(("draft_max", "every"), [(1, 9), (6, 9), (16, 5), (16, 99)])
def test_guesses_right_and_wrong_change_nothing(
    setup: Setup, alone: dict[str, tuple[int, ...]], draft_max: int, every: int
) -> None:
    engine = engine_of(setup, draft_max=draft_max)
    requests = the_requests()
    for request in requests:  # every ninth guess is wrong, or every fifth, or none
        said = alone[request.id]
        request.guesser = Guesser([480 if i % every == every - 1 else id for i, id in enumerate(said)])
    guessable = {request.id for request in requests if num_guessable(request)}
    whole = run_to_the_end(engine, requests)
    assert {request_id: delta.token_ids for request_id, delta in whole.items()} == alone
    assert len(guessable) == 3
    for request_id, delta in whole.items():
        assert (delta.num_accepted > 5) == (request_id in guessable)
        assert (delta.num_accepted < delta.num_drafted) == (request_id in guessable and every < NUM_NEW)


@pytest.mark.parametrize("num_blocks", [6, 80])
def test_guesses_in_company_give_each_what_it_says_alone(
    setup: Setup, alone: dict[str, tuple[int, ...]], num_blocks: int
) -> None:
    engine = engine_of(setup, num_blocks=num_blocks, draft_max=5, max_rounds=3)
    requests = [request for request in the_requests() if num_ahead(request)]
    for request in requests:
        request.guesser = Guesser([480 if i % 9 == 8 else id for i, id in enumerate(alone[request.id])])
    tokens = run(engine, [*others(2), *requests])
    assert [tokens[request.id] for request in requests] == [alone[request.id] for request in requests]
    assert engine.stats()["accepted_tokens"] > 0
    assert (engine.stats()["preemptions"] > 0) == (num_blocks == 6)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_number_of_threads_changes_nothing(setup: Setup, alone: dict[str, tuple[int, ...]], n_threads: int) -> None:
    engine = engine_of(setup, n_threads=2)
    assert run(engine, the_requests(n_threads=n_threads)) == alone


def test_poison_in_free_slots_changes_nothing(setup: Setup, alone: dict[str, tuple[int, ...]]) -> None:
    assert own(run(engine_of(setup, poison=True), [*the_requests(), *others(5)]), alone) == alone
