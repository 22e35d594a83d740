"""Before it serves: does what a wing runs in one call give what its verbs give, one after the other?

A wing may run whole steps, draws, and rounds of both in one call (`Shortcuts` of bitnet_model/model.py). Here a few
made-up requests go both ways, prompts in pieces beside decoding rows, logprobs told and tokens drawn, and every result
must be the same to the bit. A shortcut that fails, by a wrong result or by an error, is given up: slower, and right.
And what was decoded token by token is computed once more as a prompt.

Knows plans and results, neither tensors nor any wing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from service.engine.plan import Pending, RowResult, ScheduledRow, StepPlan
from service.engine.request import Limits, Report, Request, SamplingParams

logger = logging.getLogger(__name__)

ROUNDS = 5
MOST_BLOCKS = 32
PROMPT_LENGTHS = (1, 9, 40, 71, 2, 33, 5, 64)
PARAMS = (
    SamplingParams(seed=1, temperature=0.0, repeat_penalty=1.0),
    SamplingParams(seed=2),
    SamplingParams(seed=3, temperature=0.0, repeat_penalty=1.3),
    SamplingParams(
        seed=4, temperature=1.5, top_k=100, top_p=0.9, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.2,
        logit_bias=((1, 3.0), (2, -math.inf)),
    ),
)  # fmt: skip
TOLD = Report(logprobs=3)
DRAWN = Report()


class ProvableModel(Protocol):
    """shortcuts: a dataclass of `step`, `draw` and `decode`, each None where the verbs are to be called."""

    shortcuts: Any

    def simpler(self, step: Any) -> Any:
        """A way to run steps with fewer shortcuts inside than `step`; None where the verbs are what is left."""
        ...


class ProvableRunner(Protocol):
    def launch(self, plan: StepPlan) -> Pending: ...

    def zero_blocks(self, block_ids: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Doubt:
    """A shortcut ("step", "draw" or "decode") that is not to be trusted, and what it did."""

    shortcut: str
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What the made-up requests may use: token ids below vocab_size, n_ctx tokens, blocks of a cache that is idle.

    Of the blocks the first MOST_BLOCKS.
    """

    vocab_size: int
    n_ctx: int
    num_blocks: int
    block_tokens: int
    num_threads: int

    def run(self, runner: ProvableRunner) -> list[RowResult]:
        """Every result of every step, and the cache as it was."""
        try:
            told = self._answers(runner, self._requests(TOLD), rounds=1)
            return told + self._answers(runner, self._requests(DRAWN), rounds=ROUNDS)
        finally:
            runner.zero_blocks(self._blocks())

    def is_exact(self, runner: ProvableRunner) -> bool:
        """Whether a token is computed alike by itself and in a prompt, by the logprobs of the token after it."""
        try:
            requests = self._requests(TOLD)
            decoded = self._answers(runner, requests, rounds=1)[-len(requests) :]
            prompts = [self._again(request) for request in requests]
            rows = [ScheduledRow(prompt, 0, prompt.total, sample=True) for prompt in prompts]
            return not rows or self._step(runner, rows, 1) == decoded
        finally:
            runner.zero_blocks(self._blocks())

    def _again(self, request: Request) -> Request:
        """A request whose prompt are the tokens that its last one was chosen after."""
        prompt_ids = tuple(request.token_ids[:-1])
        again = Request(request.id, prompt_ids, request.params, request.limits, report=request.report)
        again.block_ids = request.block_ids
        return again

    def _blocks(self) -> list[int]:
        return list(range(min(self.num_blocks, MOST_BLOCKS)))

    def _requests(self, report: Report) -> list[Request]:
        """As many as fit, on blocks that lie in no order."""
        most = self.n_ctx - ROUNDS - 3
        lengths = [min(length, most) for length in PROMPT_LENGTHS] if most > 0 else []
        free, requests = self._blocks(), []
        for index, length in enumerate(lengths):
            needed = -(-(length + ROUNDS + 3) // self.block_tokens)
            if needed > len(free):
                break
            prompt_ids = tuple((7 + 7919 * (i + 1) * (index + 2)) % self.vocab_size for i in range(length))
            params = PARAMS[index % len(PARAMS)]
            limits = Limits(n_ctx=self.n_ctx, n_batch=max(PROMPT_LENGTHS))
            request = Request(f"proof-{index}", prompt_ids, params, limits, report=report)
            request.block_ids = [free.pop(len(free) // 2) for _ in range(needed)]
            requests.append(request)
        return requests

    def _answers(self, runner: ProvableRunner, requests: list[Request], rounds: int) -> list[RowResult]:
        """Prompts in two pieces, the second beside decoding rows; a step of nothing but decoding; and rounds."""
        results: list[RowResult] = []
        if not requests:
            return results
        for pieces in (2, 1, 1):
            rows = [
                ScheduledRow(request, request.num_computed, count, sample=count == request.gap)
                for request in requests
                for count in [-(-request.gap // pieces)]
            ]
            results += self._step(runner, rows, 1)
        decoding = [ScheduledRow(request, request.num_computed, rounds, sample=True) for request in requests]
        return results + self._step(runner, decoding, rounds)

    def _step(self, runner: ProvableRunner, rows: list[ScheduledRow], rounds: int) -> list[RowResult]:
        results = list(runner.launch(StepPlan(tuple(rows), self.num_threads, rounds)).tokens())
        sampled = iter(results)
        for row in rows:
            row.request.advance(row.count if rounds == 1 else 1)
            if row.sample:
                row.request.append(next(sampled).token_id)
        return results


def prove(model: ProvableModel, run: Callable[[], list[RowResult]]) -> list[Doubt]:
    """Take the model's shortcuts one after the other into use, each only if `run` gives what it gives without.

    Logs and returns what was given up. Raises what `run` raises without shortcuts: then nothing works.
    """
    offered = model.shortcuts
    kept = model.shortcuts = replace(offered, step=None, draw=None, decode=None)
    wanted = run()
    doubts = []
    for name in ("step", "draw", "decode"):
        shortcut = getattr(offered, name)
        while shortcut is not None:
            model.shortcuts = replace(kept, **{name: shortcut})
            why = _failing(run, wanted)
            if why is None:
                kept = model.shortcuts
                break
            doubts.append(Doubt(name, why))
            logger.warning("a shortcut of this backend is given up: %s: %s", name, why)
            shortcut = model.simpler(shortcut) if name == "step" else None
    model.shortcuts = kept
    return doubts


def _failing(run: Callable[[], list[RowResult]], wanted: Sequence[RowResult]) -> str | None:
    """What is wrong with the results of `run`; None where they are as wanted."""
    try:
        found = run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    num_different = sum(a != b for a, b in zip(wanted, found, strict=True))
    return f"{num_different} of {len(wanted)} results differ" if num_different else None
