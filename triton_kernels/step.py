"""A whole step of one plan in one call: the batch is moved once, and steps of all usual sizes are replayed as graphs.

Walks the plan in the order of the model's verbs, on the same kernels, so the result has the verbs' bits. Knows verbs
and graphs and no kernel; plans and batches are read by attribute (their classes belong to the model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triton_kernels.advance import advance
from triton_kernels.best import NO_ID
from triton_kernels.cache import Cache
from triton_kernels.device import Device
from triton_kernels.draw import Draws
from triton_kernels.graphs import NO_SLOT, Capture, DecodeGraphs, DecodeInputs
from triton_kernels.mixed import MixedGraphs, MixedInputs
from triton_kernels.query_blocks import QueryBlocks, cut, query_tokens
from triton_kernels.rounds import PLAIN, DrawGraphs, Room, RoundGraphs
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


@dataclass(frozen=True, slots=True)
class Graphs:
    """The captured steps of one cache."""

    held: Cache
    decode: DecodeGraphs
    mixed: MixedGraphs
    rounds: RoundGraphs


class Step:
    """Callable as (batch, cache) -> f32 [R, H], the hidden states of batch.logit_rows before the final norm."""

    def __init__(self, wing: TritonWing, plan: Any, capture: Capture | None) -> None:
        self._wing = wing
        self._plan = plan
        self._capture = capture
        self._graphs: Graphs | None = None
        self.captures_prompts = capture is not None
        self._draws = None if capture is None else DrawGraphs(self.tokens, capture, wing.device, plan.hidden_size)

    @property
    def plan(self) -> Any:
        return self._plan

    @property
    def device(self) -> Device:
        return self._wing.opened

    def draw(self, hidden: Tensor, draws: Any) -> Tensor:
        """Hidden states f32 [R, H] and a `DrawBatch` of one round -> the next token of each row, int64 [R]."""
        assert self._draws is not None
        return self._draws(self._wing.here(hidden), draws)

    def decode(self, rows: Any, draws: Any, held: Cache) -> Tensor:
        """A `DecodeBatch` and a `DrawBatch` -> the tokens of all its rounds, int64 [rounds, B]."""
        graphs = self.graphs(held)
        assert graphs is not None
        return graphs.rounds(rows, draws, held.keys.shape[3])

    def tokens(self, hidden: Tensor, draws: Draws, drawn: Tensor, candidates: int) -> None:
        """The tokens of a turn into `drawn`, all on the device."""
        self._wing.tokens(self._plan, hidden, draws, drawn, candidates)

    def __call__(self, batch: Any, held: Cache) -> Tensor:
        here = self._wing.here
        graphs = self.graphs(held)
        num_tokens, num_rows = batch.token_ids.shape[0], batch.lengths.shape[0]
        is_decode = num_tokens == num_rows and bool((batch.starts.diff() == 1).all())
        if graphs is not None and is_decode and num_rows <= graphs.decode.largest:
            inputs = DecodeInputs(batch.token_ids, batch.positions, batch.slots, batch.block_tables, batch.lengths)
            hidden = graphs.decode.step(inputs)
            if torch.equal(batch.logit_rows, torch.arange(num_rows)):  # nothing to choose, so nothing to send there
                return hidden.clone()
        elif graphs is not None and self.captures_prompts and graphs.mixed.fits(num_tokens, num_rows):
            hidden = graphs.mixed.step(batch)
        else:
            rows = self._wing.rows(batch.block_tables, batch.lengths, batch.starts, self._plan.num_heads, held)
            hidden = self.layers(here(batch.token_ids), here(batch.positions), here(batch.slots), rows, held)
        return hidden[here(batch.logit_rows)]

    def warm_up(
        self, held: Cache, max_rows: int, max_blocks: int, max_tokens: int, draws: bool
    ) -> Iterator[tuple[int, int]]:
        """Compile kernels and capture steps for what is to come; yields (done, total). Touches no slot.

        Everything else would be compiled while a request waits for it.
        """
        graphs = self.graphs(held)
        buckets = (1, 32, 64) if graphs is None else graphs.decode.buckets_for(max_rows)
        works: list[Iterator[int]] = []
        total = 0
        if graphs is not None and self.captures_prompts:
            works.append(graphs.mixed.prepare(max_tokens, max_rows, max_blocks))
            total += len(graphs.mixed.sizes(max_tokens, max_rows))
        if graphs is not None:
            works.append(graphs.decode.prepare(max_rows, max_blocks))
            total += len(buckets)
        singly: list[Callable[[], object]] = []
        if not self.captures_prompts:
            sizes = [size for size in TOKENS_TO_WARM if size <= max(max_tokens, TOKENS_TO_WARM[0])]
            singly += [partial(self.run_idle, size, held) for size in sizes]
        if graphs is not None and draws:
            prepare = partial(self.prepare_draws, graphs, max_blocks)
            singly += [partial(prepare, size, room) for size in reversed(buckets) for room in PLAIN]
        singly += [partial(self.run_head, rows, *kind) for rows in reversed(buckets) for kind in TOKENS_TO_RANK]
        for done, _ in enumerate(chain(*works, one_by_one(singly)), 1):
            yield done, total + len(singly)

    def prepare_draws(self, graphs: Graphs, max_blocks: int, num_rows: int, room: Room) -> None:
        """Capture rounds of so many rows, and draws for hidden states."""
        assert self._draws is not None
        graphs.rounds.prepare(num_rows, max_blocks, room)
        self._draws.prepare(num_rows, room)

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

    def graphs(self, held: Cache) -> Graphs | None:
        """The captured steps of this cache, or None where nothing is captured. A new cache starts anew."""
        if self._capture is None:
            return None
        if self._graphs is None or self._graphs.held is not held:
            device, num_kv_heads = self._wing.device, held.keys.shape[2]
            tokens = query_tokens(self._plan.num_heads, num_kv_heads, held.keys.shape[4], self._wing.opened)
            self._graphs = Graphs(
                held,
                DecodeGraphs(DecodeRun(self, held), self._capture, device),
                MixedGraphs(MixedRun(self, held), self._capture, device, partial(cut, tokens=tokens), tokens),
                RoundGraphs(RoundRun(self, held), self._capture, device),
            )
        return self._graphs

    def layers(self, token_ids: Tensor, positions: Tensor, slots: Tensor, rows: Rows, held: Cache) -> Tensor:
        """All layers on tensors of the device: f32 [T, H], the hidden states of every token."""
        wing, plan = self._wing, self._plan
        with wing.launching(token_ids.shape[0]):
            x = wing.embed(plan.embedding, token_ids)
            for index, layer in enumerate(plan.layers):
                qkv = wing.ternary_linear(wing.norm_quantize(x, layer.attn_gain, plan.eps), layer.qkv)
                q = wing.rope_write_kv(qkv, positions, plan.rope, held, index, slots)
                a = wing.attend(q, held, index, rows)
                sub = layer.attn_sub_gain
                codes = wing.quantize(a) if sub is None else wing.norm_quantize(a, sub, plan.eps)
                x = wing.ternary_linear(codes, layer.o, x)
                h = wing.norm_quantize(x, layer.ffn_gain, plan.eps)
                gated = wing.gate(h, layer.gate_up, layer.ffn_sub_gain, plan.eps, plan.act)
                x = wing.ternary_linear(gated, layer.down, x)
        return x


def one_by_one(works: Sequence[Callable[[], object]]) -> Iterator[int]:
    """Do them in turn; yields how many are left after each."""
    for left, work in zip(range(len(works) - 1, -1, -1), works, strict=True):
        work()
        yield left


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
            self._fixed[count] = starts, QueryBlocks(starts[:count], firsts, arrived, single=True)
        return self._fixed[count]


class RoundRun:
    """A decode step, the draw of its tokens, and the inputs of the next round in place of its own."""

    def __init__(self, step: Step, held: Cache) -> None:
        self._step = step
        self._block_tokens = held.keys.shape[3]
        self._decode = DecodeRun(step, held)

    def __call__(self, inputs: DecodeInputs, draws: Draws, drawn: Tensor, candidates: int) -> None:
        self._step.tokens(self._decode(inputs), draws, drawn, candidates)
        own = inputs.token_ids, inputs.positions, inputs.slots, inputs.lengths
        advance(*own, inputs.block_tables, draws.turn, drawn, self._block_tokens, self._step.device)


class MixedRun:
    """Ragged rows whose query blocks come with them."""

    def __init__(self, step: Step, held: Cache) -> None:
        self._step = step
        self._held = held
        self._arrived: dict[int, Tensor] = {}

    def __call__(self, inputs: MixedInputs) -> Tensor:
        count, num_kv_heads = inputs.block_row.shape[0], self._held.keys.shape[2]
        if count not in self._arrived:  # made once, so that no captured step makes it
            self._arrived[count] = torch.zeros(count, num_kv_heads, dtype=torch.int32, device=inputs.block_row.device)
        blocks = QueryBlocks(inputs.block_row, inputs.block_first, self._arrived[count], single=False)
        rows = Rows(inputs.block_tables, inputs.lengths, inputs.starts, blocks)
        return self._step.layers(inputs.token_ids, inputs.positions, inputs.slots, rows, self._held)
