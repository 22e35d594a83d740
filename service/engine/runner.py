"""The engine's hands: a StepPlan becomes the tensors of one forward pass, and its logits become tokens.

Owns the KV cache, whose memory the system gives out page by page as blocks are first used. Keeps nothing of a request
from one step to the next, so a row may be run again or in other company. Knows no scheduling, no text, no arithmetic:
numbers are made by the model and its wing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet_model.batch import DecodeBatch, ForwardBatch
from bitnet_model.ops import CacheDtype, DecodeFunction
from bitnet_model.plan import Cache
from service.engine.draws import num_ahead
from service.engine.logprobs import score
from service.engine.penalties import NO_ID
from service.engine.plan import RowResult, ScheduledRow, StepPlan
from service.engine.ragged import flatten, pad
from service.engine.request import Logprobs, Request
from service.engine.sampler import NOT_FINITE, LogitSource, draw_batch, drawn_result, sample

SCORED_AT_A_TIME = 32
"""Rows whose logits over the whole vocabulary are held at a time to tell logprobs: 16 MB for 128256 tokens."""


class StepModel(LogitSource, Protocol):
    """What the runner needs of a model."""

    @property
    def decode(self) -> DecodeFunction | None:
        """Takes rows of one token to the tokens of several rounds in one call, where the wing can."""
        ...

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        """Write the keys and values of the batch, return the hidden states of its logit rows: f32 [R, H]."""
        ...

    def new_cache(self, num_blocks: int, block_tokens: int, dtype: CacheDtype) -> Cache: ...

    def warm_up(self, cache: Cache, max_rows: int, max_blocks: int, max_tokens: int) -> Iterator[tuple[int, int]]: ...


class StepOps(Protocol):
    """What the runner needs of the wing."""

    def set_threads(self, n: int) -> None: ...

    def zero_blocks(self, cache: Cache, block_ids: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Completed:
    """A step that was over when it was launched."""

    results: tuple[RowResult, ...]

    def tokens(self) -> Sequence[RowResult]:
        return self.results


@dataclass(frozen=True, slots=True)
class Asked:
    """A token whose logprob is wanted: the hidden state it is judged by is row `index`."""

    index: int
    token_id: int
    num_top: int


def _successors(row: ScheduledRow, first: int) -> list[Asked]:
    """The prompt's tokens after the positions scored, whose hidden states begin at row `first`."""
    num_top = row.request.report.prompt_logprobs or 0
    token_ids = row.request.prompt_ids[row.scored.start + 1 : row.scored.stop + 1]
    return [Asked(first + i, token_id, num_top) for i, token_id in enumerate(token_ids)]


class ModelRunner:
    """Runs plans on one model; `service.engine.plan.Runner`. For one thread, the engine's."""

    def __init__(
        self, model: StepModel, ops: StepOps, *, num_blocks: int, block_tokens: int, kv_dtype: CacheDtype
    ) -> None:
        self.model = model
        self._ops = ops
        self._block_tokens = block_tokens
        self._cache = model.new_cache(num_blocks, block_tokens, kv_dtype)
        self._num_threads = 0

    def warm_up(self, max_rows: int, n_ctx: int, max_tokens: int, progress: Callable[[int, int], None]) -> None:
        """Do now what the first steps would wait for: up to max_rows rows of n_ctx tokens, max_tokens in a step.

        `progress` is called with (done, total); not at all where there is nothing to do.
        """
        with torch.inference_mode():
            for done, total in self.model.warm_up(self._cache, max_rows, -(-n_ctx // self._block_tokens), max_tokens):
                progress(done, total)

    def launch(self, plan: StepPlan) -> Completed:
        """Run the step; complete on return. Raises what the forward raises; a row that went bad is in its result."""
        self._use_threads(plan.num_threads)
        with torch.inference_mode():
            if self.model.decode is not None and decodes_only(plan):
                return Completed(tuple(self._decode(self.model.decode, plan)))
            if plan.rounds > 1:
                return Completed(tuple(self._repeat(plan)))
            hidden = self.model.forward(make_batch(plan.rows, self._block_tokens), self._cache)
            if plan.has_drafts:
                return Completed(tuple(self._check_drafts(plan.rows, hidden)))
            if any(len(row.scored) for row in plan.rows):
                results = self._results_with_scores(plan.rows, hidden)
            else:
                results = self._sample([row.request for row in plan.rows if row.sample], hidden)
        return Completed(tuple(results))

    def _decode(self, decode: DecodeFunction, plan: StepPlan) -> Iterator[RowResult]:
        """All of the plan's rounds at once, by the wing."""
        requests = [row.request for row in plan.rows]
        drawn = decode(decode_batch(plan.rows, self._block_tokens), draw_batch(requests, plan.rounds), self._cache)
        for first_id, *later_ids in drawn.T.tolist():
            yield replace(drawn_result(first_id), later_ids=tuple(id for id in later_ids if id >= 0))

    def _repeat(self, plan: StepPlan) -> Iterator[RowResult]:
        """The plan's rounds one after the other, each with the forward and the draw of a step of its own.

        A round in which a row fails is the last one for all of them: their next step goes on from there.
        """
        requests = [row.request for row in plan.rows]
        rows = decode_batch(plan.rows, self._block_tokens)
        rounds: list[list[RowResult]] = []
        with _looking_ahead(requests):
            for batch in round_batches(rows, plan.rounds, self._block_tokens):
                token_ids = torch.tensor([request.token_ids[-1] for request in requests])
                hidden = self.model.forward(replace(batch, token_ids=token_ids), self._cache)
                results = sample(self.model, hidden, requests)
                rounds.append(results)
                if any(result.error for result in results):
                    break
                for request, result in zip(requests, results, strict=True):
                    request.token_ids.append(result.token_id)
        for first, *later in zip(*rounds, strict=True):
            yield replace(first, later_ids=tuple(result.token_id for result in later if not result.error))

    def _check_drafts(self, rows: Sequence[ScheduledRow], hidden: Tensor) -> Iterator[RowResult]:
        """The token after the newest of each row, and those after its drafts as long as these are what was chosen."""
        supposed = [row.request.supposing(row.drafts[:i]) for row in rows for i in range(len(row.drafts) + 1)]
        results = iter(self._sample(supposed, hidden))
        for row in rows:
            first, *later = islice(results, len(row.drafts) + 1)
            token_ids = [first.token_id]
            for draft, result in zip(row.drafts, later, strict=True):
                if token_ids[-1] != draft or result.error:
                    break
                token_ids.append(result.token_id)
            yield replace(first, later_ids=tuple(token_ids[1:]))

    def _sample(self, requests: Sequence[Request], hidden: Tensor) -> list[RowResult]:
        """The next token of each request, f32 [requests, H], with its logprobs where they are asked for."""
        results = sample(self.model, hidden, requests)
        told = [
            Asked(i, result.token_id, request.report.logprobs)
            for i, (request, result) in enumerate(zip(requests, results, strict=True))
            if request.report.logprobs is not None and not result.error
        ]
        for asked, logprobs in zip(told, self._score(told, hidden), strict=True):
            result = results[asked.index]
            results[asked.index] = (
                RowResult(NO_ID, NOT_FINITE) if logprobs is None else replace(result, logprobs=logprobs)
            )
        return results

    def _results_with_scores(self, rows: Sequence[ScheduledRow], hidden: Tensor) -> list[RowResult]:
        """The same where the logits of other tokens than each row's last are wanted, too: all are in `hidden`."""
        ends = np.cumsum([len(row.scored) + row.sample for row in rows]).tolist()
        sampled = [(row.request, end - 1) for row, end in zip(rows, ends, strict=True) if row.sample]
        drawn = iter(self._sample([request for request, _ in sampled], hidden[[place for _, place in sampled]]))
        results = []
        for row, end in zip(rows, ends, strict=True):
            if row.has_result:
                first = end - row.sample - len(row.scored)
                scores = self._score(_successors(row, first), hidden)
                result = next(drawn) if row.sample else RowResult(NO_ID)
                if None in scores:
                    result = RowResult(NO_ID, NOT_FINITE)
                told = tuple(item for item in scores if item is not None)
                results.append(result if result.error else replace(result, prompt_logprobs=told))
        return results

    def _score(self, asked: Sequence[Asked], hidden: Tensor) -> list[Logprobs | None]:
        """How likely each of these tokens was; None where the logits are not finite."""
        scores = []
        for start in range(0, len(asked), SCORED_AT_A_TIME):
            part = asked[start : start + SCORED_AT_A_TIME]
            logits = self.model.logits(hidden[[item.index for item in part]]).cpu().numpy()
            scores += [score(row, item.token_id, item.num_top) for row, item in zip(logits, part, strict=True)]
        return scores

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        """Wipe these blocks in every layer."""
        self._ops.zero_blocks(self._cache, block_ids)

    def _use_threads(self, num_threads: int) -> None:
        if num_threads != self._num_threads:
            self._ops.set_threads(num_threads)
            self._num_threads = num_threads


def make_batch(rows: Sequence[ScheduledRow], block_tokens: int) -> ForwardBatch:
    """Lay out the rows one after the other. Built in numpy: a torch call per row would cost more than a small model."""
    counts = np.array([row.count for row in rows], dtype=np.int64)
    lengths = np.array([row.start for row in rows], dtype=np.int64) + counts
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    row_of_token = np.repeat(np.arange(len(rows)), counts)
    positions = np.arange(starts[-1]) + (lengths - starts[1:])[row_of_token]
    num_blocks = ((lengths - 1) // block_tokens + 1).tolist()
    tables = pad([row.request.block_ids[:count] for row, count in zip(rows, num_blocks, strict=True)], filler=0)
    slots = tables[row_of_token, positions // block_tokens] * block_tokens + positions % block_tokens
    token_ids = flatten([[*row.request.token_ids[row.start : row.start + row.count], *row.drafts] for row in rows])
    return ForwardBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        block_tables=torch.from_numpy(tables.astype(np.int32)),
        lengths=torch.from_numpy(lengths.astype(np.int32)),
        starts=torch.from_numpy(starts.astype(np.int32)),
        logit_rows=torch.from_numpy(_logit_rows(rows, starts)),
    )


def decodes_only(plan: StepPlan) -> bool:
    """Every row is the newest token of its request, and the wing can draw what comes after it."""
    return all(row.sample and row.count == plan.rounds <= num_ahead(row.request) for row in plan.rows)


def decode_batch(rows: Sequence[ScheduledRow], block_tokens: int) -> DecodeBatch:
    """Lay out rows that begin with their newest token."""
    num_blocks = [(row.start + row.count - 1) // block_tokens + 1 for row in rows]
    tables = pad([row.request.block_ids[:count] for row, count in zip(rows, num_blocks, strict=True)], filler=0)
    return DecodeBatch(
        token_ids=torch.from_numpy(np.array([row.request.token_ids[row.start] for row in rows], dtype=np.int64)),
        lengths=torch.from_numpy(np.array([row.start + 1 for row in rows], dtype=np.int32)),
        block_tables=torch.from_numpy(tables.astype(np.int32)),
    )


def round_batches(rows: DecodeBatch, rounds: int, block_tokens: int) -> list[ForwardBatch]:
    """The batch of each round of these rows, all laid out at once, with the token ids of the first."""
    every = torch.arange(len(rows.lengths) + 1)
    positions = rows.lengths.long() - 1 + torch.arange(rounds)[:, None]
    blocks = rows.block_tables[every[:-1], positions // block_tokens].long()
    slots, lengths, starts = blocks * block_tokens + positions % block_tokens, (positions + 1).int(), every.int()
    return [
        ForwardBatch(rows.token_ids, positions[i], slots[i], rows.block_tables, lengths[i], starts, every[:-1])
        for i in range(rounds)
    ]


@contextmanager
def _looking_ahead(requests: Sequence[Request]) -> Iterator[None]:
    """Tokens may be put behind those that the requests have; they are taken off again at the end."""
    totals = [request.total for request in requests]
    try:
        yield
    finally:
        for request, total in zip(requests, totals, strict=True):
            del request.token_ids[total:]


def _logit_rows(rows: Sequence[ScheduledRow], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which tokens of the batch have their logits wanted: of each row those scored, then the last if it is sampled, and
    the one before each of its drafts."""
    is_sampled = np.array([row.sample for row in rows], dtype=np.bool_)
    last = starts[1:][is_sampled] - 1
    others = [
        np.arange(row.scored.start, row.scored.stop) - row.start + start
        for row, start in zip(rows, starts[:-1], strict=True)
        if len(row.scored)
    ]
    others += [
        np.arange(end - 1 - len(row.drafts), end - 1) for row, end in zip(rows, starts[1:], strict=True) if row.drafts
    ]
    return np.sort(np.concatenate([*others, last])) if others else last
