"""What a wing runs in one call is used only where it gives what its verbs give."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model, Shortcuts
from bitnet_model.ops import Ops
from cpu_fallback.wing import TorchWing
from service import compose
from service.config import Settings
from service.engine.plan import Pending, RowResult, StepPlan
from service.engine.proof import Doubt, Trial, prove
from service.engine.runner import ModelRunner

NUM_BLOCKS, BLOCK_TOKENS = 40, 16
Run = Callable[[], list[RowResult]]


@pytest.fixture
def model(ops: Ops, tiny_packed: Path) -> Model:
    return load_model(tiny_packed, ops, head_dtype="int8")


@pytest.fixture
def runner(model: Model) -> ModelRunner:
    return ModelRunner(model, model.ops, num_blocks=NUM_BLOCKS, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")


@pytest.fixture
def run(model: Model, runner: ModelRunner) -> Run:
    trial = Trial(model.config.vocab_size, 128, NUM_BLOCKS, BLOCK_TOKENS, 2)
    return lambda: trial.run(runner)


@pytest.fixture
def offered(model: Model) -> Shortcuts:
    """Skipped on the wing without any: there is nothing to prove."""
    if model.shortcuts == Shortcuts():
        pytest.skip("the wing on torch alone has no shortcuts")
    return model.shortcuts


def test_a_sound_wing_keeps_every_shortcut(model: Model, run: Run) -> None:
    offered = model.shortcuts
    assert prove(model, run) == []
    assert model.shortcuts == offered


def test_a_trial_asks_for_everything_and_leaves_the_cache_as_it_was(
    runner: ModelRunner, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[StepPlan] = []
    zeroed: list[Sequence[int]] = []
    launch = runner.launch

    def recorded(plan: StepPlan) -> Pending:
        plans.append(plan)
        return launch(plan)

    monkeypatch.setattr(runner, "launch", recorded)
    monkeypatch.setattr(runner, "zero_blocks", zeroed.append)
    results = run()
    used = {block_id for plan in plans for row in plan.rows for block_id in row.request.block_ids}
    assert used <= set(zeroed[-1])
    assert results == run()
    assert any(result.logprobs for result in results)
    assert any(result.later_ids for result in results)
    assert not any(result.error for result in results)
    assert {row.sample for plan in plans for row in plan.rows} == {True, False}
    kinds = [{row.count for row in plan.rows} for plan in plans]
    assert any(counts == {1} for counts in kinds)  # nothing but decoding
    assert any(1 in counts and len(counts) > 2 for counts in kinds)  # prompts beside it


@pytest.mark.parametrize("n_ctx", [1, 12, 30])
def test_requests_fit_into_a_short_context_and_a_small_cache(runner: ModelRunner, model: Model, n_ctx: int) -> None:
    for num_blocks in (1, 3):
        results = Trial(model.config.vocab_size, n_ctx, num_blocks, BLOCK_TOKENS, 1).run(runner)
        assert bool(results) == (n_ctx > 10)


def test_tokens_of_a_prompt_and_by_themselves_are_compared(model: Model, runner: ModelRunner) -> None:
    trial = Trial(model.config.vocab_size, 128, NUM_BLOCKS, BLOCK_TOKENS, 2)
    assert trial.is_exact(runner)
    assert Trial(model.config.vocab_size, 8, NUM_BLOCKS, BLOCK_TOKENS, 2).is_exact(runner)  # no room for any
    forward = Model.forward

    def careless(batch: Any, cache: Any) -> torch.Tensor:
        return forward(model, batch, cache) + 1e-3 * len(batch.token_ids) / len(batch.lengths)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "forward", careless)
        patched.setattr(model, "shortcuts", Shortcuts(step=model.shortcuts.step))
        assert not trial.is_exact(runner)


def test_a_wrong_step_goes_and_draws_stay(
    model: Model, run: Run, offered: Shortcuts, caplog: pytest.LogCaptureFixture
) -> None:
    step = offered.step
    assert step is not None
    model.shortcuts = replace(offered, step=lambda batch, cache: step(batch, cache) + 1e-4)
    with caplog.at_level(logging.WARNING):
        doubts = prove(model, run)
    assert [doubt.shortcut for doubt in doubts] == ["step"]
    assert "results differ" in caplog.text
    assert model.shortcuts == replace(offered, step=None)


def test_a_step_that_is_right_with_fewer_shortcuts_inside_is_used_so(
    model: Model, run: Run, offered: Shortcuts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = offered.step

    def broken(batch: Any, cache: Any) -> torch.Tensor:
        raise RuntimeError("out of shared memory")

    model.shortcuts = replace(offered, step=broken)
    monkeypatch.setattr(model, "simpler", lambda step: sound if step is broken else None)
    assert prove(model, run) == [Doubt("step", "RuntimeError: out of shared memory")]
    assert model.shortcuts == offered


def test_a_wrong_draw_and_wrong_rounds_go_and_the_rest_stays(model: Model, run: Run, offered: Shortcuts) -> None:
    draw, decode = offered.draw, offered.decode
    assert draw is not None
    assert decode is not None
    wrong_draw = lambda hidden, draws: draw(hidden, draws).clamp(max=300)  # noqa: E731
    wrong_decode = lambda rows, draws, cache: decode(rows, draws, cache).clamp(max=300)  # noqa: E731
    model.shortcuts = replace(offered, draw=wrong_draw)
    assert [doubt.shortcut for doubt in prove(model, run)] == ["draw"]
    assert model.shortcuts == replace(offered, draw=None)
    model.shortcuts = replace(offered, decode=wrong_decode)
    assert [doubt.shortcut for doubt in prove(model, run)] == ["decode"]
    assert model.shortcuts == replace(offered, decode=None)


def test_what_fails_without_shortcuts_is_raised(model: Model) -> None:
    def run() -> list[RowResult]:
        raise RuntimeError("nothing works")

    with pytest.raises(RuntimeError, match="nothing works"):
        prove(model, run)


@pytest.mark.parametrize("exact", [True, False])
def test_a_wing_that_wants_proof_gives_it_before_it_serves(
    tiny_packed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, exact: bool
) -> None:
    proved: list[object] = []
    monkeypatch.setattr(TorchWing, "wants_proof", True)
    monkeypatch.setattr(compose, "prove", lambda model, run: proved.append(run()))
    monkeypatch.setattr(Trial, "is_exact", lambda trial, runner: exact)
    compose.load(Settings(model=str(tiny_packed), offline=True, backend="cpu", cpu_isa="torch"))
    assert len(proved) == 1
    assert ("answers are not exact" in caplog.text) != exact
