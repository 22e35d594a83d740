"""The verbs of the seam on a GPU. What each does is documented at the seam; here is only how this wing does it.

Handles live on the device. A batch's tensors may come from the host and are moved: by every verb, or once a step when
the whole step runs in one call (`compile`). Results are on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from triton_kernels import attention, cache, head, linear, pack, pointwise
from triton_kernels.attention import QueryBlocks
from triton_kernels.cache import Cache, RopeTables
from triton_kernels.device import Device
from triton_kernels.graphs import Capture, DecodeGraphs, DecodeInputs
from triton_kernels.head import Table
from triton_kernels.pack import Weights
from triton_kernels.pointwise import Quantized


class TritonWing:
    """Satisfies the Protocol of the seam. `capture` makes what records steps as graphs; None means they are not."""

    name = "triton"
    head_dtypes = head.HEAD_DTYPES

    def __init__(self, device: Device, why: str, capture: Callable[[], Capture] | None = None) -> None:
        self._device = device
        self._why = why
        self._capture = capture
        self._sums = device.zeros(0, dtype=torch.int32)
        self._gains = WeakIdKeyDictionary()

    def pack(self, segments: Sequence[tuple[Tensor, Tensor]]) -> Weights:
        weights = pack.pack(segments, self._device.torch_device)
        if self._sums.numel() < 64 * weights.num_outputs:
            self._sums = self._device.zeros(64 * weights.num_outputs, dtype=torch.int32)
        return weights

    def pack_table(self, weight: Tensor, *, embedding: bool, head_dtype: str | None) -> Table:
        return head.pack_table(weight, embedding=embedding, head_dtype=head_dtype, device=self._device)

    def embed(self, table: Table, token_ids: Tensor) -> Tensor:
        if table.embedding is None:
            raise ValueError("this table was packed without an embedding")
        return pointwise.embed(table.embedding, self._here(token_ids), table.width, self._device)

    def norm_quantize(self, x: Tensor, gain: Tensor, eps: float) -> Quantized:
        return pointwise.quantize(self._here(x), self._gain(gain), eps, self._device)

    def quantize(self, x: Tensor) -> Quantized:
        return pointwise.quantize(self._here(x), None, 0.0, self._device)

    def ternary_linear(self, q: Quantized, w: Weights, residual: Tensor | None = None) -> Tensor:
        added = None if residual is None else self._here(residual)
        return linear.ternary_linear(q, w, added, self._device, self._sums)

    def gate_norm_quantize(self, gate_up: Tensor, gain: Tensor | None, eps: float, act: str) -> Quantized:
        there = None if gain is None else self._gain(gain)
        return pointwise.gate_quantize(self._here(gate_up), there, eps, act, self._device)

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
        return (9 * free_bytes // 10 - weight_bytes) // per_token

    def zero_blocks(self, cache_: Cache, block_ids: Sequence[int]) -> None:
        cache.zero_blocks(cache_, block_ids)

    def rope_write_kv(
        self, qkv: Tensor, positions: Tensor, tables: RopeTables, cache_: Cache, layer: int, slots: Tensor
    ) -> Tensor:
        here = self._here
        return cache.rope_write_kv(here(qkv), here(positions), tables, cache_, layer, here(slots), self._device)

    def paged_attention(
        self, q: Tensor, cache_: Cache, layer: int, block_tables: Tensor, lengths: Tensor, starts: Tensor
    ) -> Tensor:
        rows = self._rows(block_tables, lengths, starts, q.shape[1], cache_)
        return attend(self._here(q), cache_, layer, rows, self._device)

    def head(self, x: Tensor, gain: Tensor, eps: float, table: Table) -> Tensor:
        return head.head(self._here(x), self._gain(gain), eps, table, self._device)

    def head_topk(
        self, x: Tensor, gain: Tensor, eps: float, table: Table, k: int, extra_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        return head.top(self.head(x, gain, eps, table), k, self._here(extra_ids))

    def compile(self, plan: Any) -> Callable[[Any, Cache], Tensor]:
        return Step(self, plan, None if self._capture is None else self._capture())

    def compile_draw(self, plan: Any) -> None:
        """None: the engine draws from what `head_topk` ranks."""

    def set_threads(self, n: int) -> None:
        """The host's threads have no part in a step on this device."""

    def close(self) -> None:
        """This wing has no threads; its memory goes with its handles."""

    def describe(self) -> dict[str, str]:
        return {"wing": self.name, "isa": self._device.name, "threads": "1", "why": self._why}

    def memory_bytes(self, handle: Any) -> int:
        held = {tensor.data_ptr(): tensor for tensor in held_tensors(handle)}
        return sum(tensor.numel() * tensor.element_size() for tensor in held.values())

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device.torch_device, non_blocking=True)

    def _gain(self, gain: Tensor) -> Tensor:
        """A gain on the device, moved there once for as long as the given tensor lives."""
        if gain.device == self._device.torch_device:
            return gain
        if gain not in self._gains:
            self._gains[gain] = self._here(gain)
        moved: Tensor = self._gains[gain]
        return moved

    def _rows(self, block_tables: Tensor, lengths: Tensor, starts: Tensor, num_heads: int, held: Cache) -> Rows:
        num_kv_heads, head_dim = held.keys.shape[2], held.keys.shape[4]
        blocks = attention.query_blocks(starts.tolist(), num_heads, num_kv_heads, head_dim, self._device)
        return Rows(self._here(block_tables), self._here(lengths), self._here(starts), blocks)


@dataclass(frozen=True, slots=True)
class Rows:
    """What attention needs to know of a step's rows, on the device."""

    block_tables: Tensor
    lengths: Tensor
    starts: Tensor
    blocks: QueryBlocks


def attend(q: Tensor, held: Cache, layer: int, rows: Rows, device: Device) -> Tensor:
    return attention.paged_attention(q, held, layer, rows.block_tables, rows.lengths, rows.starts, rows.blocks, device)


class Step:
    """A whole step of one plan in one call: the batch is moved once, and a pure decode step is replayed as a graph."""

    def __init__(self, wing: TritonWing, plan: Any, capture: Capture | None) -> None:
        self._wing = wing
        self._device = wing._device
        self._plan = plan
        self._capture = capture
        self._graphs: tuple[Cache, DecodeGraphs] | None = None

    def __call__(self, batch: Any, held: Cache) -> Tensor:
        """(ForwardBatch, cache) -> f32 [R, H]: the hidden states of batch.logit_rows before the final norm."""
        here = self._wing._here
        graphs = self.graphs(held)
        num_tokens, num_rows = batch.token_ids.shape[0], batch.lengths.shape[0]
        if graphs is not None and num_tokens == num_rows <= graphs.largest and bool((batch.starts.diff() == 1).all()):
            inputs = DecodeInputs(batch.token_ids, batch.positions, batch.slots, batch.block_tables, batch.lengths)
            hidden = graphs.step(inputs)
        else:
            rows = self._wing._rows(batch.block_tables, batch.lengths, batch.starts, self._plan.num_heads, held)
            hidden = self.layers(here(batch.token_ids), here(batch.positions), here(batch.slots), rows, held)
        return hidden[here(batch.logit_rows)]

    def graphs(self, held: Cache) -> DecodeGraphs | None:
        """The captured decode steps of this cache, or None where nothing is captured. A new cache starts anew."""
        if self._capture is None:
            return None
        if self._graphs is None or self._graphs[0] is not held:
            run = DecodeRun(self, held)
            self._graphs = (held, DecodeGraphs(run, self._capture, self._device.torch_device))
        return self._graphs[1]

    def layers(self, token_ids: Tensor, positions: Tensor, slots: Tensor, rows: Rows, held: Cache) -> Tensor:
        """All layers on tensors of the device: f32 [T, H], the hidden states of every token."""
        wing, plan = self._wing, self._plan
        x = wing.embed(plan.embedding, token_ids)
        for index, layer in enumerate(plan.layers):
            qkv = wing.ternary_linear(wing.norm_quantize(x, layer.attn_gain, plan.eps), layer.qkv)
            q = wing.rope_write_kv(qkv, positions, plan.rope, held, index, slots)
            a = attend(q, held, index, rows, self._device)
            sub = layer.attn_sub_gain
            x = wing.ternary_linear(
                wing.quantize(a) if sub is None else wing.norm_quantize(a, sub, plan.eps), layer.o, x
            )
            gate_up = wing.ternary_linear(wing.norm_quantize(x, layer.ffn_gain, plan.eps), layer.gate_up)
            gated = wing.gate_norm_quantize(gate_up, layer.ffn_sub_gain, plan.eps, plan.act)
            x = wing.ternary_linear(gated, layer.down, x)
        return x


class DecodeRun:
    """One token a row: the query blocks are known without looking at the batch, as a captured step needs."""

    def __init__(self, step: Step, held: Cache) -> None:
        self._step = step
        self._held = held

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        count, device = inputs.lengths.shape[0], inputs.lengths.device
        starts = torch.arange(count + 1, dtype=torch.int32, device=device)
        blocks = QueryBlocks(starts[:count], torch.zeros(count, dtype=torch.int32, device=device))
        rows = Rows(inputs.block_tables, inputs.lengths, starts, blocks)
        return self._step.layers(inputs.token_ids, inputs.positions, inputs.slots, rows, self._held)


def held_tensors(handle: Any) -> list[Tensor]:
    return [value for field in fields(handle) if isinstance(value := getattr(handle, field.name), Tensor)]
