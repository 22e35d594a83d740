"""One prefill or one decode step of our model, without engine and server: model forward, then the likeliest tokens.

The rows of a decode step have caches of their own, filled with random keys and values, and stand at the same position.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import torch

from bitnet_model.batch import ForwardBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.ops import load_ops
from service.engine.blocks import BLOCK_TOKENS

TOP_K = 40  # the server's default

Kind: TypeAlias = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt of `count` tokens, or a step of `count` rows."""

    kind: Kind
    count: int

    def __str__(self) -> str:
        return f"{'pp' if self.kind == 'prefill' else 'decode '}{self.count}"


class Steps(Protocol):
    """A model that runs cases. `weight_bits` and `head_bits` are what its layout spends on one weight."""

    name: str
    weight_bits: float
    head_bits: float

    def times_s(self, case: Case, threads: int, seconds: float) -> list[float]:
        """Durations of single runs, at least one, for about `seconds` in all."""
        ...


class OurSteps:
    """bitnet_model on the CPU wing."""

    name = "ours"
    weight_bits = 2.0

    def __init__(self, folder: Path, *, isa: str, head_dtype: str | None, rows: int, context: int, prompt: int) -> None:
        """`context` keys are in each of `rows` caches before a decode step; `prompt` is the longest prompt."""
        torch.set_num_threads(1)
        self._context = context
        self._ops = load_ops("cpu", isa=isa, threads=1)
        self._model = load_model(folder, self._ops, head_dtype=head_dtype or self._ops.head_dtypes[0])
        self.head_bits = 8.0 if getattr(self._model.plan.head, "low", None) is None else 4.0
        self._row_blocks = context // BLOCK_TOKENS + 1
        prompt_blocks = -(-prompt // BLOCK_TOKENS)
        self._num_blocks = max(rows * self._row_blocks, prompt_blocks)
        self._cache = self._model.new_cache(self._num_blocks, BLOCK_TOKENS, "bf16")
        self._fill_cache()

    def describe(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self._ops.describe().items() if key in ("wing", "isa"))

    def times_s(self, case: Case, threads: int, seconds: float) -> list[float]:
        self._ops.set_threads(threads)
        batch = self._prompt(case.count) if case.kind == "prefill" else self._rows(case.count)
        if case.kind == "decode":
            self._run(batch)  # warms up
        durations: list[float] = []
        while not durations or sum(durations) < seconds:
            start = time.perf_counter()
            self._run(batch)
            durations.append(time.perf_counter() - start)
        return durations

    def close(self) -> None:
        """End the wing's threads."""
        self._ops.close()

    @torch.inference_mode()
    def _run(self, batch: ForwardBatch) -> None:
        hidden = self._model.forward(batch, self._cache)
        self._model.top_logits(hidden, TOP_K, torch.empty(len(hidden), 0, dtype=torch.int64))

    def _fill_cache(self) -> None:
        plan = self._model.plan
        slots = torch.arange(self._num_blocks * BLOCK_TOKENS)
        qkv = torch.randn(len(slots), (plan.num_heads + 2 * plan.num_kv_heads) * plan.head_dim)
        for layer in range(len(plan.layers)):
            self._ops.rope_write_kv(qkv, slots % BLOCK_TOKENS, plan.rope, self._cache, layer, slots)

    def _prompt(self, count: int) -> ForwardBatch:
        positions = torch.arange(count)
        return self._batch(positions, positions, [list(range(-(-count // BLOCK_TOKENS)))], [count])

    def _rows(self, count: int) -> ForwardBatch:
        tables = [list(range(row * self._row_blocks, (row + 1) * self._row_blocks)) for row in range(count)]
        block, offset = divmod(self._context, BLOCK_TOKENS)
        slots = torch.tensor([table[block] * BLOCK_TOKENS + offset for table in tables])
        return self._batch(torch.full((count,), self._context), slots, tables, [self._context + 1] * count)

    def _batch(
        self, positions: torch.Tensor, slots: torch.Tensor, tables: list[list[int]], lengths: list[int]
    ) -> ForwardBatch:
        """One or more rows of equally many tokens each; the last of each is wanted."""
        starts = torch.arange(len(lengths) + 1) * (len(positions) // len(lengths))
        return ForwardBatch(
            token_ids=torch.randint(self._model.config.vocab_size, (len(positions),)),
            positions=positions,
            slots=slots,
            block_tables=torch.tensor(tables, dtype=torch.int32),
            lengths=torch.tensor(lengths, dtype=torch.int32),
            starts=starts.to(torch.int32),
            logit_rows=starts[1:] - 1,
        )
