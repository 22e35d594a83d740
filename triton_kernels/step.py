"""A whole step of one plan in one call: the batch is moved once, and a pure decode step is replayed as a graph.

Walks the plan in the order of the model's verbs, on the same kernels, so the result has the verbs' bits. Knows verbs
and graphs and no kernel; plans and batches are read by attribute (their classes belong to the model).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triton_kernels.attention import QueryBlocks
from triton_kernels.best import NO_ID
from triton_kernels.cache import Cache
from triton_kernels.graphs import NO_SLOT, Capture, DecodeGraphs, DecodeInputs
from triton_kernels.tuning import PREFILL_BUCKETS

if TYPE_CHECKING:
    from triton_kernels.wing import TritonWing

TOKENS_TO_WARM = (16, 32, 64, *PREFILL_BUCKETS)
"""Steps that are not captured come in these sizes, each with kernels of its own."""
TOKENS_TO_RANK = ((1, 0), (104, 64))
"""(k, extra ids) of the head: greedy, and the default sampling with a penalty window."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What attention needs to know of a step's rows, on the device."""

    block_tables: Tensor
    lengths: Tensor
    starts: Tensor
    blocks: QueryBlocks


class Step:
    """Callable as (batch, cache) -> f32 [R, H], the hidden states of batch.logit_rows before the final norm."""

    def __init__(self, wing: TritonWing, plan: Any, capture: Capture | None) -> None:
        self._wing = wing
        self._plan = plan
        self._capture = capture
        self._graphs: tuple[Cache, DecodeGraphs] | None = None

    def __call__(self, batch: Any, held: Cache) -> Tensor:
        here = self._wing.here
        graphs = self.graphs(held)
        num_tokens, num_rows = batch.token_ids.shape[0], batch.lengths.shape[0]
        if graphs is not None and num_tokens == num_rows <= graphs.largest and bool((batch.starts.diff() == 1).all()):
            inputs = DecodeInputs(batch.token_ids, batch.positions, batch.slots, batch.block_tables, batch.lengths)
            hidden = graphs.step(inputs)
            if torch.equal(batch.logit_rows, torch.arange(num_rows)):  # nothing to choose, so nothing to send there
                return hidden.clone()
        else:
            rows = self._wing.rows(batch.block_tables, batch.lengths, batch.starts, self._plan.num_heads, held)
            hidden = self.layers(here(batch.token_ids), here(batch.positions), here(batch.slots), rows, held)
        return hidden[here(batch.logit_rows)]

    def warm_up(self, held: Cache, max_rows: int, max_blocks: int, max_tokens: int) -> Iterator[tuple[int, int]]:
        """Compile kernels and capture decode steps for what is to come; yields (done, total). Touches no slot.

        Everything else would be compiled while a request waits for it.
        """
        graphs = self.graphs(held)
        buckets = (1, 32, 64) if graphs is None else graphs.buckets_for(max_rows)
        sizes = [size for size in TOKENS_TO_WARM if size <= max(max_tokens, TOKENS_TO_WARM[0])]
        heads = [(num_rows, *kind) for num_rows in reversed(buckets) for kind in TOKENS_TO_RANK]
        total = len(sizes) + len(heads) + (0 if graphs is None else len(buckets))
        for done, size in enumerate(sizes, 1):
            self.run_idle(size, held)
            yield done, total
        for done, kind in enumerate(heads, len(sizes) + 1):
            self.run_head(*kind)
            yield done, total
        if graphs is not None:
            for left in graphs.prepare(max_rows, max_blocks):
                yield total - left, total

    def run_idle(self, num_tokens: int, held: Cache) -> Tensor:
        """A step of one padding row of many tokens: it writes nothing and attends to nothing."""
        device, plan = self._wing.device, self._plan
        zeros = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        tables, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        starts = torch.tensor([0, num_tokens], dtype=torch.int32)
        rows = self._wing.rows(tables, lengths, starts, plan.num_heads, held)
        return self.layers(zeros, zeros, torch.full_like(zeros, NO_SLOT), rows, held)

    def run_head(self, num_rows: int, k: int, num_extra: int) -> None:
        plan = self._plan
        x = torch.zeros(num_rows, plan.hidden_size, device=self._wing.device)
        extra_ids = torch.full((num_rows, num_extra), NO_ID, dtype=torch.int64)
        self._wing.head_topk(x, plan.head_gain, plan.eps, plan.head, k, extra_ids)

    def graphs(self, held: Cache) -> DecodeGraphs | None:
        """The captured decode steps of this cache, or None where nothing is captured. A new cache starts anew."""
        if self._capture is None:
            return None
        if self._graphs is None or self._graphs[0] is not held:
            run = DecodeRun(self, held)
            self._graphs = (held, DecodeGraphs(run, self._capture, self._wing.device))
        return self._graphs[1]

    def layers(self, token_ids: Tensor, positions: Tensor, slots: Tensor, rows: Rows, held: Cache) -> Tensor:
        """All layers on tensors of the device: f32 [T, H], the hidden states of every token."""
        wing, plan = self._wing, self._plan
        x = wing.embed(plan.embedding, token_ids)
        for index, layer in enumerate(plan.layers):
            qkv = wing.ternary_linear(wing.norm_quantize(x, layer.attn_gain, plan.eps), layer.qkv)
            q = wing.rope_write_kv(qkv, positions, plan.rope, held, index, slots)
            a = wing.attend(q, held, index, rows)
            sub = layer.attn_sub_gain
            x = wing.ternary_linear(
                wing.quantize(a) if sub is None else wing.norm_quantize(a, sub, plan.eps), layer.o, x
            )
            h = wing.norm_quantize(x, layer.ffn_gain, plan.eps)
            x = wing.ternary_linear(wing.gate(h, layer.gate_up, layer.ffn_sub_gain, plan.eps, plan.act), layer.down, x)
        return x


class DecodeRun:
    """One token a row: the query blocks are known without looking at the batch, as a captured step needs."""

    def __init__(self, step: Step, held: Cache) -> None:
        self._step = step
        self._held = held
        self._num_kv_heads = held.keys.shape[2]
        self._fixed: dict[int, tuple[Tensor, QueryBlocks]] = {}

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        starts, blocks = self._of_rows(inputs.lengths)
        rows = Rows(inputs.block_tables, inputs.lengths, starts, blocks)
        return self._step.layers(inputs.token_ids, inputs.positions, inputs.slots, rows, self._held)

    def _of_rows(self, lengths: Tensor) -> tuple[Tensor, QueryBlocks]:
        """The same in every step of so many rows: made once, so that no captured step makes them."""
        count, device = lengths.shape[0], lengths.device
        if count not in self._fixed:
            starts = torch.arange(count + 1, dtype=torch.int32, device=device)
            firsts = torch.zeros(count, dtype=torch.int32, device=device)
            arrived = torch.zeros(count, self._num_kv_heads, dtype=torch.int32, device=device)
            self._fixed[count] = starts, QueryBlocks(starts[:count], firsts, arrived)
        return self._fixed[count]
