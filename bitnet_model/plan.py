"""The model as data: what a wing gets to execute a whole step in one call.

The loader fills these once. `bitnet_model/model.py` walks them verb by verb (the definition); a wing whose
`compile(plan)` returns a callable walks them itself (the coarse grain). The handles are opaque values of one wing: this
floor stores them and passes them back, and never looks inside, hence `Any`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

Weights: TypeAlias = Any
"""Packed ternary weights of one fused linear, from `Ops.pack`."""
Table: TypeAlias = Any
"""An embedding table, an output head, or both, from `Ops.pack_table`."""
Quantized: TypeAlias = Any
"""int8 codes [T, K] with an fp32 scale [T] per token, from the `*quantize` verbs."""
RopeTables: TypeAlias = Any
"""fp32 cosines and sines per position, from `Ops.rope_tables`."""
Cache: TypeAlias = Any
"""The paged KV cache of all layers, from `Ops.new_cache`."""

Activation: TypeAlias = Literal["relu2", "silu"]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One transformer layer. Gains are f32 ([H], [H], [H], [F]); a sub-norm gain is None where the family has none."""

    attn_gain: Tensor
    qkv: Weights  # three segments: q, k, v
    attn_sub_gain: Tensor | None
    o: Weights
    ffn_gain: Tensor
    gate_up: Weights  # two segments: gate, up
    ffn_sub_gain: Tensor | None
    down: Weights


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The whole model. `embedding` and `head` are one Table where the checkpoint ties them."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    act: Activation
    eps: float
    rope: RopeTables
    embedding: Table
    layers: tuple[LayerPlan, ...]
    head_gain: Tensor
    head: Table
