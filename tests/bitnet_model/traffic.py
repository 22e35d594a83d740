"""A minimal engine for tests: requests with blocks of their own, fed to a model in steps of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.model import Model
from bitnet_model.ops import CacheDtype

BLOCK_TOKENS = 32


@dataclass
class Row:
    """One request: its tokens, its blocks, how many tokens are computed, and the hidden state after each."""

    token_ids: list[int]
    block_ids: list[int]
    computed: int = 0
    hidden: list[Tensor] = field(default_factory=list)


class Traffic:
    """A model with a KV cache; every row's blocks are scattered over the pool, the last block is never given away."""

    def __init__(self, model: Model, dtype: CacheDtype = "bf16", num_blocks: int = 64) -> None:
        self.model = model
        self.num_slots = num_blocks * BLOCK_TOKENS
        self.cache: Any = model.new_cache(num_blocks, BLOCK_TOKENS, dtype)
        order = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(5)).tolist()
        self._free: list[int] = order

    def admit(self, token_ids: Sequence[int]) -> Row:
        """Give a request the blocks it will need."""
        needed = -(-len(token_ids) // BLOCK_TOKENS)
        blocks, self._free = self._free[:needed], self._free[needed:]
        assert len(blocks) == needed, "the test's pool is too small"
        return Row(list(token_ids), blocks)

    def step(self, work: Sequence[tuple[Row, int]]) -> None:
        """Compute the next `count` tokens of each row in one forward."""
        batch = batch_of(work)
        hidden = self.model.forward(batch, self.cache)
        for (row, count), part in zip(work, hidden.split_with_sizes([count for _, count in work]), strict=True):
            row.hidden.append(part)
            row.computed += count

    def run(self, rows: Sequence[Row], chunks: Sequence[int]) -> None:
        """All rows side by side until each is computed, row i in chunks of chunks[i]."""
        while work := [
            (row, min(chunk, len(row.token_ids) - row.computed))
            for row, chunk in zip(rows, chunks, strict=True)
            if row.computed < len(row.token_ids)
        ]:
            self.step(work)

    def poison(self, rows: Sequence[Row]) -> None:
        """Write NaN to every slot that `rows` have not computed, in every layer."""
        used = {slot for row in rows for slot in slots_of(row, 0, row.computed)}
        free = torch.tensor([slot for slot in range(self.num_slots) if slot not in used])
        plan = self.model.plan
        width = (plan.num_heads + 2 * plan.num_kv_heads) * plan.head_dim
        qkv = torch.full((len(free), width), torch.nan)
        for layer in range(len(plan.layers)):
            self.model.ops.rope_write_kv(qkv, torch.zeros_like(free), plan.rope, self.cache, layer, free)


def slots_of(row: Row, start: int, stop: int) -> list[int]:
    """The cache slots of positions start .. stop - 1."""
    return [
        row.block_ids[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for position in range(start, stop)
    ]


def batch_of(work: Sequence[tuple[Row, int]]) -> ForwardBatch:
    """The next `count` tokens of each row, the hidden state of every one of them wanted."""
    spans = [(row, row.computed, row.computed + count) for row, count in work]
    width = max(len(row.block_ids) for row, _ in work)
    starts = [0]
    for _, count in work:
        starts.append(starts[-1] + count)
    return ForwardBatch(
        token_ids=torch.tensor([token for row, a, b in spans for token in row.token_ids[a:b]]),
        positions=torch.tensor([position for _, a, b in spans for position in range(a, b)]),
        slots=torch.tensor([slot for row, a, b in spans for slot in slots_of(row, a, b)]),
        block_tables=torch.tensor(
            [row.block_ids + [0] * (width - len(row.block_ids)) for row, _ in work], dtype=torch.int32
        ),
        lengths=torch.tensor([b for _, _, b in spans], dtype=torch.int32),
        starts=torch.tensor(starts, dtype=torch.int32),
        logit_rows=torch.arange(starts[-1]),
    )
