"""The engine's hands: a StepPlan becomes the tensors of one forward pass, and its logits become tokens.

Owns the KV cache, whose memory the system gives out page by page as blocks are first used. Keeps nothing of a request
from one step to the next, so a row may be run again or in other company. Knows no scheduling, no text, no arithmetic:
numbers are made by the model and its wing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.ops import CacheDtype
from bitnet_model.plan import Cache
from service.engine.plan import RowResult, ScheduledRow, StepPlan
from service.engine.ragged import flatten, pad
from service.engine.sampler import LogitSource, sample


class StepModel(LogitSource, Protocol):
    """What the runner needs of a model."""

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


class ModelRunner:
    """Runs plans on one model; `service.engine.plan.Runner`. For one thread, the engine's."""

    def __init__(
        self, model: StepModel, ops: StepOps, *, num_blocks: int, block_tokens: int, kv_dtype: CacheDtype
    ) -> None:
        self._model = model
        self._ops = ops
        self._block_tokens = block_tokens
        self._cache = model.new_cache(num_blocks, block_tokens, kv_dtype)
        self._num_threads = 0

    def warm_up(self, max_rows: int, n_ctx: int, max_tokens: int, progress: Callable[[int, int], None]) -> None:
        """Do now what the first steps would wait for: up to max_rows rows of n_ctx tokens, max_tokens in a step.

        `progress` is called with (done, total); not at all where there is nothing to do.
        """
        with torch.inference_mode():
            for done, total in self._model.warm_up(self._cache, max_rows, -(-n_ctx // self._block_tokens), max_tokens):
                progress(done, total)

    def launch(self, plan: StepPlan) -> Completed:
        """Run the step; complete on return. Raises what the forward raises; a row that went bad is in its result."""
        self._use_threads(plan.num_threads)
        with torch.inference_mode():
            hidden = self._model.forward(make_batch(plan.rows, self._block_tokens), self._cache)
            results = sample(self._model, hidden, [row.request for row in plan.rows if row.sample])
        return Completed(tuple(results))

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
    token_ids = flatten([row.request.token_ids[row.start : row.start + row.count] for row in rows])
    is_sampled = np.array([row.sample for row in rows], dtype=np.bool_)
    return ForwardBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        block_tables=torch.from_numpy(tables.astype(np.int32)),
        lengths=torch.from_numpy(lengths.astype(np.int32)),
        starts=torch.from_numpy(starts.astype(np.int32)),
        logit_rows=torch.from_numpy(starts[1:][is_sampled] - 1),
    )
