"""The coarse grain: a model's plan as one C structure, and a whole step of it, or several with their draws, in a call.

The library walks the plan in the order of the model's verbs, on the same kernels, so the result has the verbs' bits.
Plans and batches are read by attribute (their classes belong to the model).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpu_fallback.native_handles import ACTS, Cache, address_of, dense
from cpu_fallback.native_library import (
    NativeBatch,
    NativeContext,
    NativeDecoding,
    NativeDraw,
    NativeDraws,
    NativeLayer,
    NativePlan,
    layers_array,
)

DRAW_PARAMETERS = len(NativeDraw._fields_)
"""Columns of a DrawBatch's parameters."""


class CompiledStep:
    """A plan made ready at load: callable as (batch, cache) -> f32 [R, H], the hidden states of batch.logit_rows.

    Keeps the plan, and with it every weight, alive. Raises ValueError where the plan's extents do not go together.
    """

    def __init__(self, context: NativeContext, plan: Any) -> None:
        self._context = context
        self._plan = plan
        self._gains: list[Tensor | None] = []
        self._layers = layers_array([self._layer(layer) for layer in plan.layers])
        self._native = NativePlan(
            hidden_size=plan.hidden_size,
            intermediate_size=plan.intermediate_size,
            num_heads=plan.num_heads,
            num_kv_heads=plan.num_kv_heads,
            head_dim=plan.head_dim,
            act=ACTS[plan.act],
            num_layers=len(plan.layers),
            eps=plan.eps,
            rope=plan.rope.native(),
            embedding=plan.embedding.native,
            layers=self._layers,
            head_gain=self._gain(plan.head_gain, plan.hidden_size),
            head=plan.head.native,
        )

    def _layer(self, layer: Any) -> NativeLayer:
        plan, heads_width = self._plan, self._plan.num_heads * self._plan.head_dim
        kv_width = self._plan.num_kv_heads * self._plan.head_dim
        wanted = {
            "qkv": (heads_width + 2 * kv_width, plan.hidden_size),
            "o": (plan.hidden_size, heads_width),
            "gate_up": (2 * plan.intermediate_size, plan.hidden_size),
            "down": (plan.hidden_size, plan.intermediate_size),
        }
        for name, extents in wanted.items():
            native = getattr(layer, name).native
            if (native.rows, native.width) != extents:
                raise ValueError(f"{name} is [{native.rows}, {native.width}], the plan wants {list(extents)}")
        gains = [
            self._gain(layer.attn_gain, plan.hidden_size),
            self._gain(layer.attn_sub_gain, heads_width),
            self._gain(layer.ffn_gain, plan.hidden_size),
            self._gain(layer.ffn_sub_gain, plan.intermediate_size),
        ]
        return NativeLayer(*gains, layer.qkv.native, layer.o.native, layer.gate_up.native, layer.down.native)

    def _gain(self, gain: Tensor | None, width: int) -> int | None:
        """The gain's address; the tensor itself is kept."""
        kept = None if gain is None else dense(gain, torch.float32, (width,), "gain")
        self._gains.append(kept)
        return address_of(kept)

    def __call__(self, batch: Any, cache: Cache) -> Tensor:
        """Run the step: writes keys and values of its tokens. Raises ValueError for indices outside their tables."""
        tokens, requests, wanted = len(batch.token_ids), len(batch.lengths), len(batch.logit_rows)
        self._check(cache)
        tensors = [
            dense(batch.token_ids, torch.int64, (tokens,), "token_ids"),
            dense(batch.positions, torch.int64, (tokens,), "positions"),
            dense(batch.slots, torch.int64, (tokens,), "slots"),
            dense(batch.block_tables, torch.int32, (requests, None), "block_tables"),
            dense(batch.lengths, torch.int32, (requests,), "lengths"),
            dense(batch.starts, torch.int32, (requests + 1,), "starts"),
            dense(batch.logit_rows, torch.int64, (wanted,), "logit_rows"),
        ]
        addresses = [tensor.data_ptr() for tensor in tensors]
        native = NativeBatch(*addresses, tokens, requests, tensors[3].shape[1], wanted)
        hidden = torch.empty(wanted, self._plan.hidden_size)
        self._context.call("step", self._native, native, cache.native, hidden.data_ptr())
        return hidden

    def decode(self, rows: Any, draws: Any, cache: Cache) -> Tensor:
        """Rounds of decoding: DecodeBatch of B rows, DrawBatch -> int64 [rounds, B]: the tokens drawn, one a round.

        -1 and -2 as `NativeCpuWing.head_draw` has them. Raises ValueError for indices outside their tables.
        """
        requests = len(rows.lengths)
        self._check(cache)
        token_ids = dense(rows.token_ids, torch.int64, (requests,), "token_ids")
        tables = dense(rows.block_tables, torch.int32, (requests, None), "block_tables")
        lengths = dense(rows.lengths, torch.int32, (requests,), "lengths")
        native = NativeDecoding(token_ids.data_ptr(), tables.data_ptr(), lengths.data_ptr(), requests, tables.shape[1])
        drawn = Draws(draws)
        ids = torch.empty(drawn.native.rounds, requests, dtype=torch.int64)
        self._context.call("decode", self._native, native, cache.native, drawn.native, ids.data_ptr())
        return ids

    def _check(self, cache: Cache) -> None:
        shape = (cache.native.kv_heads, cache.native.head_dim)
        if shape != (self._plan.num_kv_heads, self._plan.head_dim):
            raise ValueError(f"a cache of {shape[0]} heads of {shape[1]} does not go with this plan")


class Draws:
    """A DrawBatch by address; keeps its tensors alive. Raises ValueError for tensors that do not go together."""

    def __init__(self, draws: Any) -> None:
        num_rows = len(draws.parameters)
        self._tensors = [
            dense(draws.parameters, torch.float64, (num_rows, DRAW_PARAMETERS), "parameters"),
            dense(draws.randoms, torch.float64, (None, num_rows), "randoms"),
            dense(draws.windows, torch.int64, (None,), "windows"),
            dense(draws.window_starts, torch.int32, (num_rows + 1,), "window_starts"),
            dense(draws.bias_ids, torch.int64, (None,), "bias_ids"),
            dense(draws.biases, torch.float32, (None,), "biases"),
            dense(draws.bias_starts, torch.int32, (num_rows + 1,), "bias_starts"),
        ]
        _, randoms, windows, window_starts, bias_ids, biases, bias_starts = self._tensors
        if int(window_starts[-1]) != len(windows):
            raise ValueError("the starts do not cut the windows into rows")
        if not int(bias_starts[-1]) == len(bias_ids) == len(biases):
            raise ValueError("the starts do not cut the biases into rows")
        self.native = NativeDraws(*(tensor.data_ptr() for tensor in self._tensors), num_rows, len(randoms))
