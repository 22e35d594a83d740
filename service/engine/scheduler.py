"""Who computes what in the next step. There are no phases: `plan` hands out tokens until computed meets total.

- A request that lacks one token always gets it. Prompts share a budget of `n_batch` tokens on top of that.
- Once anything is decoding, the budget is also what fits in `step_ms` at the rate measured lately, and at least half a
  block: streams do not stall behind a long prompt, and the prompt still gets on. The step is then of whole blocks of
  tokens, decoding ones included: kernels have tiles, and on a CPU 36 tokens took a fifth more time each than 32.
- Within the budget, every prompt that an equal share would finish gets what it lacks; what is left goes to the others
  in order of arrival. Short prompts do not wait behind long ones, equal ones finish one after the other instead of all
  at the end, and the oldest long one gets its share in each step whatever arrives.
- Requests are admitted strictly first in, first out, when the pool can hold all their known tokens and one more block
  for each running request. So nobody starves, and one that was preempted does not come back just to be preempted again.
- When a growing request finds no free block, the youngest running one is preempted: it loses what is computed, keeps
  its tokens and waits at the head of the queue. The oldest can always go on, so there is no livelock.
- When all do nothing but decode, and in a way that can be repeated without the engine, a step is several rounds: as
  many as end within AHEAD_MS at the rate measured lately. Of a fast model, the way around it takes longer than it does.
- Or it also computes guesses of their next tokens, where that says more tokens a millisecond (`speculation.py`).
- A block that a neighbour has finished meanwhile is adopted, not recomputed: also by requests already running. Whoever
  lacks a block that an older request computes next waits for it: of eight choices, one computes the prompt.

Knows no text, no time (it is told how long steps took) and no tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from service.engine.blocks import BlockPool
from service.engine.draws import num_ahead, num_guessable
from service.engine.errors import InvalidParameter
from service.engine.plan import ScheduledRow, StepPlan
from service.engine.request import Request
from service.engine.speculation import GuessCost, draft_lengths

AHEAD_MS = 8.0
"""Longest step of several rounds: how much later than without a newcomer starts, or a stream goes on."""
MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The operator's ceilings. n_batch: prompt tokens in a step. step_ms: None for no limit in time.

    max_rounds: rounds in a step of nothing but decoding. draft_max: guesses of a request's next tokens in one.
    """

    max_running: int
    n_batch: int
    n_threads: int
    step_ms: float | None = None
    max_rounds: int = 1
    draft_max: int = 0


class PrefillRate:
    """Tokens per millisecond of steps that held prompt tokens: a moving average that forgets half at each step.

    Small steps are dominated by reading the weights and so look slow; the next budget is then too small by some, and
    the one after it larger, until steps take as long as they may. No model of the machine is needed.
    """

    def __init__(self) -> None:
        self._tokens_per_ms = 0.0

    def observe(self, num_tokens: int, elapsed_ms: float) -> None:
        measured = num_tokens / max(elapsed_ms, 1e-3)
        self._tokens_per_ms = (self._tokens_per_ms + measured) / 2 if self._tokens_per_ms else measured

    def tokens_in(self, duration_ms: float) -> int:
        """Tokens that fit in `duration_ms`; 0 as long as nothing was measured."""
        return int(self._tokens_per_ms * duration_ms)


class Scheduler:
    """Waiting and running requests over one block pool. One thread owns it."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Request] = deque()  # oldest first, every one younger than any running
        self.running: list[Request] = []  # oldest first
        self.num_preemptions = 0
        self._rate = PrefillRate()
        self._round_ms = 0.0  # of the last step of nothing but decoding; 0 as long as there was none
        self._guess_cost = GuessCost()  # in such steps

    def check_fits(self, request: Request) -> None:
        """Raises InvalidParameter if the request could outgrow the whole pool. Safe from any thread."""
        if request.limit > self.pool.num_tokens:
            raise InvalidParameter(
                f"the request may come to {request.limit} tokens, and the KV pool holds {self.pool.num_tokens}", "n_ctx"
            )

    def add(self, request: Request) -> None:
        self.check_fits(request)
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take a waiting or running request out and let go of its blocks."""
        (self.running if request in self.running else self.waiting).remove(request)
        self.pool.release(request.rewind())

    def plan(self) -> StepPlan:
        """The next step; without rows when there is nothing to do. Blocks for its rows are in place, and stay so until
        the next call to a method of this scheduler."""
        self._admit()
        if all(request.is_decoding for request in self.running):
            drafts = self._drafts()
            rounds = 1 if drafts else self._num_rounds()
            if drafts or rounds > 1:
                return self._plan_decoding(rounds, drafts)
        for request in self.running:
            self._adopt(request)
        counts = self._share_out()
        rows = []
        for request in self._oldest_first():
            start, count = request.num_computed, counts.get(request.id, 0)
            if count and self._grow(request, start + count):
                sample = start + count == request.total and not request.is_full
                rows.append(ScheduledRow(request, start, count, sample))
        return StepPlan(tuple(rows), self._num_threads(rows))

    def commit(self, request: Request, num_tokens: int) -> None:
        """So many more of its tokens are computed: they count, and its full blocks may be shared."""
        first = request.num_computed // self.pool.block_tokens
        request.advance(num_tokens)
        for i in range(first, request.num_computed // self.pool.block_tokens):
            self.pool.commit(request.block_ids[i], self._key(request, i))

    def observe(self, plan: StepPlan, elapsed_ms: float) -> None:
        """A planned step took this long."""
        if any(plan.num_known(row) > 1 for row in plan.rows):
            self._rate.observe(plan.num_tokens, elapsed_ms)
            return
        round_ms = max(elapsed_ms, 1e-3) / plan.rounds
        num_drafts = sum(len(row.drafts) for row in plan.rows)
        self._guess_cost.observe(len(plan.rows), num_drafts, round_ms)
        if not num_drafts:
            self._round_ms = round_ms

    def _admit(self) -> None:
        """Let waiting requests run, in order, while there are rows and blocks for them."""
        while self.waiting and len(self.running) < self.limits.max_running:
            request = self.waiting[0]
            self._adopt(request)
            if self.running and self._num_lacking(request) + len(self.running) > self._num_spare():
                self.pool.release(request.rewind())
                return
            self.running.append(self.waiting.popleft())

    def _num_lacking(self, request: Request) -> int:
        """Blocks that the tokens known of a request still need."""
        return self.pool.num_blocks_for(request.total) - len(request.block_ids)

    def _num_spare(self) -> int:
        """Free blocks that no running request needs for the tokens known of it."""
        return self.pool.num_free - sum(self._num_lacking(request) for request in self.running)

    def _adopt(self, request: Request) -> None:
        """Take over cached blocks from where the request has got to, always leaving one token to compute."""
        block_tokens = self.pool.block_tokens
        while self._may_adopt(request):
            block_id = self.pool.share(self._key(request, len(request.block_ids)))
            if block_id is None:
                return
            request.adopt(block_id, block_tokens)

    def _may_adopt(self, request: Request) -> bool:
        """Its next block is one that it could take over."""
        block_tokens = self.pool.block_tokens
        is_at_block = request.num_computed == len(request.block_ids) * block_tokens
        return is_at_block and request.num_computed + block_tokens < request.total and request.reads_cache

    def _held(self) -> set[str]:
        """Ids of the running requests that wait for a block which an older one, as fast as they, computes next."""
        held, block_tokens = set(), self.pool.block_tokens
        leaders: dict[bytes, int] = {}
        for request in self.running:
            place = request.num_computed // block_tokens
            if request.gap == 1 or (place + 1) * block_tokens > request.total:
                continue
            key = self._key(request, place)
            if self._may_adopt(request) and leaders.get(key, 0) >= request.limits.n_batch:
                held.add(request.id)
            else:
                leaders[key] = max(leaders.get(key, 0), request.limits.n_batch)
        return held

    def _num_rounds(self) -> int:
        """Rounds of the next step, in which everybody decodes; no more than one if somebody were preempted for it."""
        if self.limits.max_rounds == 1 or not self._round_ms:
            return 1
        rounds = min(self.limits.max_rounds, int(AHEAD_MS / self._round_ms))
        for request in self.running:
            rounds = min(rounds, num_ahead(request))
            if rounds <= 1:
                return 1
        return rounds if self._have_room([rounds] * len(self.running)) else 1

    def _drafts(self) -> list[tuple[int, ...]]:
        """Guesses to compute in the next step, in which everybody decodes, of each running request; or none at all."""
        ratios = self._guess_cost.ratios(len(self.running))
        if not self.limits.draft_max or not ratios:
            return []
        most = [min(self.limits.draft_max, num_guessable(request)) for request in self.running]
        hit_rates = [
            request.guesser.look(request.token_ids, len(request.prompt_ids), request.matcher) if num else None
            for request, num in zip(self.running, most, strict=True)
        ]
        lengths = draft_lengths(hit_rates, most, ratios)
        if not any(lengths):
            return []
        drafts = [request.guesser.guess(length) for request, length in zip(self.running, lengths, strict=True)]
        return drafts if self._have_room([1 + len(guess) for guess in drafts]) else []

    def _have_room(self, counts: list[int]) -> bool:
        """There are free blocks for so many more tokens of each running request."""
        ends = [request.num_computed + count for request, count in zip(self.running, counts, strict=True)]
        held = sum(len(request.block_ids) for request in self.running)
        return sum(map(self.pool.num_blocks_for, ends)) - held <= self.pool.num_free

    def _plan_decoding(self, rounds: int, drafts: list[tuple[int, ...]]) -> StepPlan:
        """A step of nothing but decoding, of several rounds or with guesses, for which there is room."""
        rows = []
        for request, guess in zip(self.running, drafts or [()] * len(self.running), strict=True):
            rows.append(ScheduledRow(request, request.num_computed, rounds + len(guess), sample=True, drafts=guess))
            self._grow(request, request.num_computed + rows[-1].count)
        return StepPlan(tuple(rows), self._num_threads(rows), rounds)

    def _share_out(self) -> dict[str, int]:
        """Tokens for each running request in this step, by request id; nothing is said of those that get none."""
        held = self._held()
        counts = {request.id: 1 for request in self.running if request.gap == 1}
        prompts = [request for request in self.running if request.gap > 1 and request.id not in held]
        wants = {request.id: min(request.gap, request.limits.n_batch) for request in prompts}
        budget = self._prompt_budget()
        while wants and (least := min(wants.values())) <= budget // len(wants):
            short_id = next(id for id, want in wants.items() if want == least)
            counts[short_id] = wants.pop(short_id)
            budget -= least
        for id, want in wants.items():  # the long ones, oldest first
            counts[id] = min(want, budget)
            budget -= counts[id]
        return counts

    def _prompt_budget(self) -> int:
        """Prompt tokens for this step."""
        num_decoding = sum(request.is_decoding for request in self.running)
        if self.limits.step_ms is None or not num_decoding:
            return self.limits.n_batch
        block_tokens = self.pool.block_tokens
        num_tokens = max(self._rate.tokens_in(self.limits.step_ms), num_decoding + block_tokens)
        num_tokens -= num_tokens % block_tokens
        if num_tokens - num_decoding < block_tokens / 2:
            num_tokens += block_tokens
        return min(self.limits.n_batch, num_tokens - num_decoding)

    def _oldest_first(self) -> Iterator[Request]:
        """The running requests; those preempted on the way, always the youngest, do not come up."""
        i = 0
        while i < len(self.running):
            yield self.running[i]
            i += 1

    def _grow(self, request: Request, num_tokens: int) -> bool:
        """Give the request blocks for its first `num_tokens`, preempting younger ones; False if it had to go itself."""
        while len(request.block_ids) < self.pool.num_blocks_for(num_tokens):
            block_id = self.pool.take()
            if block_id is not None:
                request.block_ids.append(block_id)
            elif self._preempt_youngest() is request:
                return False
        return True

    def _preempt_youngest(self) -> Request:
        request = self.running.pop()
        self.pool.release(request.rewind())
        self.waiting.appendleft(request)
        self.num_preemptions += 1
        return request

    def _key(self, request: Request, i: int) -> bytes:
        """The key of the request's i-th block of tokens, which is full."""
        keys, block_tokens = request.block_keys, self.pool.block_tokens
        while len(keys) <= i:
            start = len(keys) * block_tokens
            parent = keys[-1] if keys else self.pool.root_key(request.salt)
            keys.append(self.pool.chain_key(parent, request.token_ids[start : start + block_tokens]))
        return keys[i]

    def _num_threads(self, rows: list[ScheduledRow]) -> int:
        """The most that any request of the step asks for, at most the server's; one without a wish asks for all."""
        ceiling = self.limits.n_threads
        return max((min(row.request.limits.n_threads or ceiling, ceiling) for row in rows), default=ceiling)

    def check_integrity(self) -> None:
        """Assert that the pool's books agree with the requests', and every request's own invariant."""
        self.pool.check_integrity(request.block_ids for request in [*self.running, *self.waiting])
        assert not any(request.block_ids for request in self.waiting), "a waiting request holds blocks"
        assert len(self.running) <= self.limits.max_running
        for request in self.running:
            assert 0 <= request.num_cached <= request.num_computed < request.total <= request.limit
            assert request.num_computed <= len(request.block_ids) * self.pool.block_tokens
