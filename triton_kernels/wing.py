"""The verbs of the seam on a GPU. What each does is documented at the seam; here is only how this wing does it.

Handles live on the device. A batch's tensors may come from the host and are moved: by every verb, or once a step when
the whole step runs in one call (`compile`). Results are on the device, except the best tokens (`head_topk`): those are
what the host chooses from, and come in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from triton_kernels import EVERYTHING, cache, dense_gated, gated, head, linear, pack, pointwise, ranking, rescore
from triton_kernels.attention import paged_attention
from triton_kernels.best import BestTokens
from triton_kernels.cache import Cache, RopeTables
from triton_kernels.device import Device
from triton_kernels.draw import Draws, choose, edit
from triton_kernels.graphs import Capture
from triton_kernels.head import Table
from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized
from triton_kernels.query_blocks import query_blocks
from triton_kernels.step import Rows, Step
from triton_kernels.tuning import dense_gated_tile, gated_tile

OVERLAP_TOKENS = 8
"""Steps of more tokens are launched kernel by kernel even where launches may overlap: with an H200, overlapping made 8
rows 6 % faster and 32 and 128 rows 6 % slower (2026-11-26)."""
SPLIT_TOKENS = 128
"""Tokens whose sums the scratch for a split K holds; more are rarely split, and get zeros of their own then."""


class TritonWing:
    """Satisfies the Protocol of the seam. `capture` makes what records steps as graphs; None means they are not.

    dense_room: bytes that copies of the weights at one byte each may take; linears that no longer fit do without.
    """

    name = "triton"
    head_dtypes = head.HEAD_DTYPES

    def __init__(
        self, device: Device, why: str, capture: Callable[[], Capture] | None = None, dense_room: int = 0
    ) -> None:
        self._device = device
        self._dense_room = self._dense_left = dense_room
        self._why = why
        self._capture = capture
        self._sums = device.zeros(0, dtype=torch.int32)
        self._gains = WeakIdKeyDictionary()
        self._step: Step | None = None
        self._best: dict[tuple[int, int, float], tuple[Table, Tensor, BestTokens]] = {}

    def pack(self, segments: Sequence[tuple[Tensor, Tensor]]) -> Weights:
        weights = pack.pack(segments, self._device.torch_device)
        if self._sums.numel() < SPLIT_TOKENS * weights.num_outputs:
            self._sums = self._device.zeros(SPLIT_TOKENS * weights.num_outputs, dtype=torch.int32)
        needed = pack.dense_bytes(weights)
        if needed > self._dense_left:
            return weights
        self._dense_left -= needed
        return replace(weights, dense=pack.unpacked(weights))

    def pack_table(self, weight: Tensor, *, embedding: bool, head_dtype: str | None) -> Table:
        return head.pack_table(weight, embedding=embedding, head_dtype=head_dtype, device=self._device)

    def embed(self, table: Table, token_ids: Tensor) -> Tensor:
        if table.embedding is None:
            raise ValueError("this table was packed without an embedding")
        return pointwise.embed(table.embedding, self.here(token_ids), table.width, self._device)

    def norm_quantize(self, x: Tensor, gain: Tensor, eps: float) -> Quantized:
        return pointwise.quantize(self.here(x), self._gain(gain), eps, self._device)

    def quantize(self, x: Tensor) -> Quantized:
        return pointwise.quantize(self.here(x), None, 0.0, self._device)

    def ternary_linear(self, q: Quantized, w: Weights, residual: Tensor | None = None) -> Tensor:
        added = None if residual is None else self.here(residual)
        return linear.ternary_linear(q, w, added, self._device, self._sums)

    def gate_norm_quantize(self, gate_up: Tensor, gain: Tensor | None, eps: float, act: str) -> Quantized:
        there = None if gain is None else self._gain(gain)
        return pointwise.gate_quantize(self.here(gate_up), there, eps, act, self._device)

    def rope_tables(self, head_dim: int, theta: float, scaling: Any | None, num_positions: int) -> RopeTables:
        if scaling is not None:
            raise ValueError(f"RoPE scaling {scaling!r} is not supported")
        return cache.rope_tables(head_dim, theta, num_positions, self._device)

    def new_cache(
        self, num_layers: int, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: str
    ) -> Cache:
        return cache.new_cache(num_layers, num_blocks, block_tokens, num_kv_heads, head_dim, dtype, self._device)

    def cache_tokens(
        self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: str, weight_bytes: int
    ) -> int | None:
        if self._device.torch_device.type != "cuda":
            return None
        free_bytes, _ = torch.cuda.mem_get_info(self._device.torch_device)
        per_token = cache.bytes_per_token(num_layers, num_kv_heads, head_dim, dtype)
        copies = min(self._dense_room, pack.DENSE_RATIO * weight_bytes)  # at most, if all of it were ternary
        return (9 * free_bytes // 10 - weight_bytes - copies) // per_token

    def zero_blocks(self, cache_: Cache, block_ids: Sequence[int]) -> None:
        cache.zero_blocks(cache_, block_ids)

    def rope_write_kv(
        self, qkv: Tensor, positions: Tensor, tables: RopeTables, cache_: Cache, layer: int, slots: Tensor
    ) -> Tensor:
        here = self.here
        return cache.rope_write_kv(here(qkv), here(positions), tables, cache_, layer, here(slots), self._device)

    def paged_attention(
        self, q: Tensor, cache_: Cache, layer: int, block_tables: Tensor, lengths: Tensor, starts: Tensor
    ) -> Tensor:
        rows = self.rows(block_tables, lengths, starts, q.shape[1], cache_)
        return self.attend(self.here(q), cache_, layer, rows)

    def head(self, x: Tensor, gain: Tensor, eps: float, table: Table) -> Tensor:
        return head.head(self.here(x), self._gain(gain), eps, table, self._device)

    def head_topk(
        self, x: Tensor, gain: Tensor, eps: float, table: Table, k: int, extra_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._best_of(table, gain, eps)(self.here(x), k, extra_ids)

    def _best_of(self, table: Table, gain: Tensor, eps: float) -> BestTokens:
        """What ranks tokens by this head; it and its captures live as long as the wing, as tables do."""
        key = (id(table), id(gain), eps)
        if key not in self._best:

            def rank(x: Tensor, k: int, extra: Tensor) -> tuple[Tensor, Tensor]:
                if table.is_rescored:
                    return rescore.rescored_top(x, self._gain(gain), eps, table, k, extra, self._device)
                return ranking.top(self.head(x, gain, eps, table), k, extra, self._device)

            capture = None if self._capture is None else self._capture()
            self._best[key] = (table, gain, BestTokens(rank, capture, self.device))
        return self._best[key][2]

    def compile(self, plan: Any) -> Callable[[Any, Cache], Tensor]:
        return self._step_of(plan)

    def _step_of(self, plan: Any) -> Step:
        """What runs this plan's steps, draws and rounds, with one store of captures for all of them."""
        if self._step is None or self._step.plan is not plan:
            self._step = Step(self, plan, None if self._capture is None else self._capture())
        return self._step

    @property
    def wants_proof(self) -> bool:
        return self._capture is not None

    def simpler(self, step: Any) -> Step | None:
        """Steps with prompts in them go kernel by kernel before all steps do."""
        if not step.captures_prompts:
            return None
        step.captures_prompts = False
        return self._step_of(step.plan)

    def warm_up(
        self, step: Any, cache_: Cache, max_rows: int, max_blocks: int, max_tokens: int, draws: bool
    ) -> Iterator[tuple[int, int]]:
        if step is not None:
            yield from step.warm_up(cache_, max_rows, max_blocks, max_tokens, draws)

    def compile_draw(self, plan: Any) -> Callable[[Tensor, Any], Tensor] | None:
        """None where nothing is captured, and with a head whose logits are not all at hand: the engine draws then."""
        return None if self._capture is None or plan.head.is_rescored else self._step_of(plan).draw

    def compile_decode(self, plan: Any) -> Callable[[Any, Any, Cache], Tensor] | None:
        """None likewise."""
        return None if self._capture is None or plan.head.is_rescored else self._step_of(plan).decode

    def tokens(self, plan: Any, hidden: Tensor, draws: Draws, drawn: Tensor, candidates: int) -> None:
        """The next token of each row of hidden f32 [R, H], on the device, into its place in `drawn`."""
        logits = self.head(hidden, plan.head_gain, plan.eps, plan.head)
        edit(logits, draws, drawn, self._device)
        none = torch.empty(logits.shape[0], 0, dtype=torch.int64, device=self.device)
        ids, best = ranking.top(logits, candidates, none, self._device)
        choose(ids, best, draws, drawn, self._device)

    def set_threads(self, n: int) -> None:
        """The host's threads have no part in a step on this device."""

    def close(self) -> None:
        """This wing has no threads; its memory goes with its handles."""

    def describe(self) -> dict[str, str]:
        room = "none" if not self._dense_room else f"up to {self._dense_room / 1e9:.1f} GB"
        copies = "all" if self._dense_room >= EVERYTHING else room
        about = {"wing": self.name, "isa": self._device.name, "threads": "1", "why": self._why}
        return {**about, "int8 copies of weights": copies}

    def memory_bytes(self, handle: Any) -> int:
        held = {tensor.data_ptr(): tensor for tensor in held_tensors(handle)}
        return sum(tensor.numel() * tensor.element_size() for tensor in held.values())

    @property
    def device(self) -> torch.device:
        return self._device.torch_device

    @property
    def opened(self) -> Device:
        """What tiles are chosen by."""
        return self._device

    def here(self, tensor: Tensor) -> Tensor:
        """The tensor on this wing's device."""
        return tensor.to(self._device.torch_device, non_blocking=True)

    @contextmanager
    def launching(self, num_tokens: int) -> Iterator[None]:
        """While the kernels of a step of so many tokens are launched."""
        device = self._device
        if num_tokens > OVERLAP_TOKENS:
            self._device = replace(device, pdl=False)
        try:
            yield
        finally:
            self._device = device

    def _gain(self, gain: Tensor) -> Tensor:
        """A gain on the device, moved there once for as long as the given tensor lives."""
        if gain.device == self._device.torch_device:
            return gain
        if gain not in self._gains:
            self._gains[gain] = self.here(gain)
        moved: Tensor = self._gains[gain]
        return moved

    def rows(self, block_tables: Tensor, lengths: Tensor, starts: Tensor, num_heads: int, held: Cache) -> Rows:
        """What attention needs to know of a batch's rows, on the device; `starts` is on the host."""
        blocks = query_blocks(starts.tolist(), num_heads, held.keys.shape[2], held.keys.shape[4], self._device)
        return Rows(self.here(block_tables), self.here(lengths), self.here(starts), blocks)

    def attend(self, q: Tensor, held: Cache, layer: int, rows: Rows) -> Tensor:
        return paged_attention(q, held, layer, rows.block_tables, rows.lengths, rows.starts, rows.blocks, self._device)

    def gate(self, q: Quantized, w: Weights, gain: Tensor | None, eps: float, act: str) -> Quantized:
        """gate_norm_quantize(ternary_linear(q, w)), multiplied in the epilogue where the tuning has it so."""
        product = self._gated_product(q, w, act)
        if product is None:
            return self.gate_norm_quantize(self.ternary_linear(q, w), gain, eps, act)
        return self.quantize(product) if gain is None else self.norm_quantize(product, gain, eps)

    def _gated_product(self, q: Quantized, w: Weights, act: str) -> Tensor | None:
        num_tokens = q.codes.shape[0]
        wide = dense_gated_tile(num_tokens, w.num_outputs, w.padded_k, self._device)
        if w.dense is not None and wide is not None:
            out = self._device.empty(num_tokens, w.num_outputs // 2, dtype=torch.float32)
            dense_gated.dense_gated(out, q, w.dense, act, wide, self._device)
            return out
        tile = gated_tile(num_tokens, w.num_packed, w.padded_k, self._device)
        return None if tile is None else gated.gated_linear(q, w, act, tile, self._device)


def held_tensors(handle: Any) -> list[Tensor]:
    """The tensors of a handle and of the handles in it."""
    values = [getattr(handle, field.name) for field in fields(handle)]
    inner = [tensor for value in values if is_dataclass(value) for tensor in held_tensors(value)]
    return [value for value in values if isinstance(value, Tensor)] + inner
