"""The engine's turn: plan, run, apply. One thread owns it; the runner is handed in, so it is tested without torch.

Error domains, from small to large. A row that comes back with an error ends its request and nobody else's; its blocks
are forgotten and zeroed. A step that raises is run again in halves until only the rows that raise by themselves are
left, and those fail. When every row of a step failed, a probe of one token tells poison from paralysis: if it fails
too, nothing can run any more and `step` raises EngineDead.

Knows no threads, no event loop and no tensors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from service.engine.blocks import BlockPool
from service.engine.detokenizer import Detokenizer
from service.engine.errors import EngineDead, EngineError, GenerationFailed, GrammarFailed
from service.engine.live import Live
from service.engine.plan import RowResult, Runner, ScheduledRow, StepPlan
from service.engine.progress import Progress
from service.engine.request import Delta, FinishReason, Limits, Request, SamplingParams, StopKind
from service.engine.scheduler import Scheduler, SchedulerLimits

logger = logging.getLogger(__name__)


class TextDecoder(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to the text; b"" for special tokens."""
        ...


@dataclass(slots=True)
class _Counters:
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    failed_requests: int = 0
    rerun_steps: int = 0
    idle_leaks: int = 0


@dataclass(slots=True)
class Engine:
    """Requests in, deltas out, one step at a time. `clock`: seconds, monotonic."""

    runner: Runner
    decoder: TextDecoder
    pool: BlockPool
    limits: SchedulerLimits
    clock: Callable[[], float] = time.perf_counter
    scheduler: Scheduler = field(init=False)
    _live: dict[str, Live] = field(init=False, default_factory=dict)
    _counters: _Counters = field(init=False, default_factory=_Counters)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.pool, self.limits)

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def check_fits(self, request: Request) -> None:
        """Raises InvalidParameter if the request could outgrow the whole KV pool. Safe from any thread."""
        self.scheduler.check_fits(request)

    def add(self, request: Request) -> None:
        """Queue a request that `check_fits`; its id is its own."""
        assert request.id not in self._live, f"request {request.id} is here already"
        self.scheduler.add(request)
        self._live[request.id] = Live(
            request, Detokenizer(request.limits.stop, include_stop=request.limits.include_stop)
        )

    def abort(self, request_id: str) -> None:
        """Drop a request, waiting or running, at once and without a delta; unknown and finished ones are ignored."""
        if request_id in self._live:
            self._drop(self._live[request_id].request)

    def step(self) -> list[tuple[str, Delta]]:
        """One turn: what it added to which request. Raises EngineDead if nothing can run any more."""
        plan = self.scheduler.plan()
        if not plan.rows:
            return []
        results = self._run_timed(plan)
        deltas = self._apply(plan, results)
        if all(result is not None and result.error for result in results):
            self._probe()
        return deltas

    def _run_timed(self, plan: StepPlan) -> list[RowResult | None]:
        started_s = self.clock()
        for row in plan.rows:
            live = self._live[row.request.id]
            live.started_s = started_s if live.started_s is None else live.started_s
        results = self._run(plan)
        self.scheduler.observe(plan, (self.clock() - started_s) * 1e3)
        self._counters.steps += 1
        return results

    def _run(self, plan: StepPlan) -> list[RowResult | None]:
        """One result for each row, None where it computed and that was all; a row that makes a step raise gets an
        error, the rest of the step is run without it."""
        try:
            return _one_per_row(plan.rows, self.runner.launch(plan).tokens())
        except Exception as error:
            if len(plan.rows) == 1:
                logger.exception("request %s: its row makes the step raise", plan.rows[0].request.id)
                return [RowResult(-1, f"the model could not process this request ({type(error).__name__})")]
        self._counters.rerun_steps += 1
        half = len(plan.rows) // 2
        first, second = (replace(plan, rows=rows) for rows in (plan.rows[:half], plan.rows[half:]))
        return self._run(first) + self._run(second)

    def _apply(self, plan: StepPlan, results: Sequence[RowResult | None]) -> list[tuple[str, Delta]]:
        deltas = []
        for row, result in zip(plan.rows, results, strict=True):
            delta = self._apply_row(row, result, plan.num_known(row))
            if delta is not None:
                deltas.append((row.request.id, delta))
        return deltas

    def _apply_row(self, row: ScheduledRow, result: RowResult | None, num_known: int) -> Delta | None:
        live = self._live[row.request.id]
        if result is not None and result.error:
            return self._fail(live, result.error, GrammarFailed if result.is_grammar else GenerationFailed)
        self._counters.prompt_tokens += 0 if row.request.is_decoding else num_known
        self.scheduler.commit(row.request, num_known)
        if result is not None:
            live.note(row, result)
            self._counters.drafted_tokens += len(row.drafts)
            self._counters.accepted_tokens += len(result.later_ids) if row.drafts else 0
            if row.sample:
                return self._extend(live, result)
        if row.request.gap == 0:  # max_tokens 0: the prompt is evaluated, and that was all
            return self._finish(live, "", (), "limit")
        return None

    def _extend(self, live: Live, result: RowResult) -> Delta:
        """The request has one more token or several: their text, and whether it ends with one of them."""
        request = live.request
        if live.first_token_s is None:
            live.first_token_s = self.clock()
            live.num_cached = request.num_cached
        token_ids, ready = (result.token_id, *result.later_ids), ""
        for place, token_id in enumerate(token_ids):
            if place:
                self.scheduler.commit(request, 1)
            request.append(token_id, result.mu)
            self._counters.generated_tokens += 1
            try:
                text, stop_kind = self._read(live, token_id)
            except LookupError:
                return self._fail(live, f"token {token_id} has no text", text=ready, token_ids=token_ids[:place])
            ready += text
            if stop_kind is not None:
                return self._finish(live, ready, token_ids[: place + 1], stop_kind)
        if request.matcher is not None:
            request.matcher.advance(token_ids)
        return self._delta(live, ready, token_ids)

    def _read(self, live: Live, token_id: int) -> tuple[str, StopKind | None]:
        """The text that the newest token makes certain, and why the request ends with it. Raises LookupError."""
        request, limits = live.request, live.request.limits
        is_eos = token_id in self.decoder.eos_ids or token_id in limits.stop_token_ids
        piece = b"" if is_eos and not limits.include_stop else self.decoder.token_bytes(token_id)
        text = live.text.push(piece, may_stop=request.num_generated > limits.min_tokens)
        if live.text.stopping_word:
            return text, "word"
        if is_eos:
            return text, "eos"
        return text, "limit" if request.is_full else None

    def _finish(self, live: Live, text: str, token_ids: tuple[int, ...], stop_kind: StopKind) -> Delta:
        text += live.text.flush()
        if live.text.stopping_word:  # half a character at the end may have completed one
            stop_kind = "word"
        reason = FinishReason.LENGTH if stop_kind == "limit" else FinishReason.STOP
        self._drop(live.request)
        return self._delta(live, text, token_ids, reason, stop_kind)

    def _fail(
        self,
        live: Live,
        message: str,
        kind: type[GenerationFailed] = GenerationFailed,
        text: str = "",
        token_ids: tuple[int, ...] = (),
    ) -> Delta:
        """End a request whose row went wrong, after what it gained before that. What it left in the cache is neither
        found nor read again."""
        logger.error("request %s failed: %s", live.request.id, message)
        self._counters.failed_requests += 1
        block_ids = self.pool.forget(live.request.block_ids)
        if block_ids:
            self.runner.zero_blocks(block_ids)
        self._drop(live.request)
        return self._delta(live, text, token_ids, FinishReason.ERROR, error=kind(message))

    def _drop(self, request: Request) -> None:
        self.scheduler.remove(request)
        del self._live[request.id]

    def _delta(
        self,
        live: Live,
        text: str,
        token_ids: tuple[int, ...],
        finish: FinishReason | None = None,
        stop_kind: StopKind | None = None,
        error: EngineError | None = None,
    ) -> Delta:
        now_s = self.clock()
        first_token_s = now_s if live.first_token_s is None else live.first_token_s
        started_s = first_token_s if live.started_s is None else live.started_s
        logprobs, prompt_logprobs = live.take()
        return Delta(
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish=finish,
            stop_kind=stop_kind,
            stopping_word=live.text.stopping_word,
            error=error,
            num_generated=live.request.num_generated,
            num_cached=live.num_cached,
            prompt_ms=(first_token_s - started_s) * 1e3,
            predicted_ms=(now_s - first_token_s) * 1e3,
            num_drafted=live.num_drafted,
            num_accepted=live.num_accepted,
        )

    def _probe(self) -> None:
        """Run one token of no request. Raises EngineDead if not even that works."""
        request = Request("probe", (0,), SamplingParams(seed=0, temperature=0.0), Limits(n_ctx=2, n_batch=1))
        block_id = self.pool.take()
        assert block_id is not None, "the rows that failed have let go of their blocks"
        request.block_ids.append(block_id)
        (result,) = self._run(StepPlan((ScheduledRow(request, 0, 1, sample=True),), self.limits.n_threads))
        self.pool.release(request.rewind())
        if result is not None and result.error:
            raise EngineDead(f"every row of a step failed, and so did the probe: {result.error}")

    def check_idle(self) -> bool:
        """With no request left, is every block back? A leak is counted and logged."""
        assert not self.has_work
        num_waiting, num_running = len(self.scheduler.waiting), len(self.scheduler.running)
        if not (self.pool.num_used or num_waiting or num_running):
            return True
        self._counters.idle_leaks += 1
        logger.error("idle, yet %d blocks used, %d waiting, %d running", self.pool.num_used, num_waiting, num_running)
        return False

    def check_integrity(self) -> None:
        """Assert that requests, scheduler and pool agree."""
        self.scheduler.check_integrity()
        known = {request.id for request in [*self.scheduler.running, *self.scheduler.waiting]}
        assert known == set(self._live), "engine and scheduler know different requests"

    def progress(self) -> list[Progress]:
        """Of each running request, oldest first. Safe from any thread; the numbers may be of different instants."""
        return [Progress.of(request) for request in tuple(self.scheduler.running)]

    def stats(self) -> dict[str, int]:
        """Gauges and counters since start. Safe from any thread; the numbers may be of different instants."""
        counters = self._counters
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "blocks_total": self.pool.num_blocks,
            "blocks_free": self.pool.num_free,
            "blocks_cached": self.pool.num_cached,
            "blocks_used": self.pool.num_used,
            "steps": counters.steps,
            "preemptions": self.scheduler.num_preemptions,
            "prompt_tokens": counters.prompt_tokens,
            "generated_tokens": counters.generated_tokens,
            "drafted_tokens": counters.drafted_tokens,
            "accepted_tokens": counters.accepted_tokens,
            "failed_requests": counters.failed_requests,
            "rerun_steps": counters.rerun_steps,
            "idle_leaks": counters.idle_leaks,
        }


def _one_per_row(rows: Sequence[ScheduledRow], sampled: Sequence[RowResult]) -> list[RowResult | None]:
    has_result = [row.has_result for row in rows]
    if len(sampled) != sum(has_result):
        raise RuntimeError("the runner answered for other rows than it was asked")
    results = iter(sampled)
    return [next(results) if has else None for has in has_result]
