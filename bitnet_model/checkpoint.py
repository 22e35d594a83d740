"""A checkpoint folder -> a Model: tensor by tensor into the wing's own layout, never through a float copy of the model.

At any time one fused linear's tensors are in memory beside what the wing keeps. Headers are checked before anything is
read (shards.py); here the values are: no NaN, no scale that is not a positive number, no code 3. All problems of
the values come in one error too. Knows what the tensors mean, not how files or wings store them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bitnet_model.config import ModelConfig
from bitnet_model.errors import CheckpointError
from bitnet_model.layout import EMBEDDING, FINAL_NORM, HEAD, LayerNames, LinearNames, expected_tensors, layer_names
from bitnet_model.model import Model
from bitnet_model.ops import Ops
from bitnet_model.plan import LayerPlan, ModelPlan, Table, Weights
from bitnet_model.shards import TensorFolder
from bitnet_model.ternary import absmean, has_unused_code, is_finite, ternarize


def load_model(
    folder: Path,
    ops: Ops,
    *,
    head_dtype: str,
    progress: Callable[[int, int], None] | None = None,
    max_positions: int | None = None,
) -> Model:
    """Load a folder into `ops`.

    `progress` hears (done, total) bytes of the weights. `max_positions` bounds the RoPE tables where less than the
    checkpoint's own length will be served. Raises CheckpointError with all problems of the headers, or of the values.
    """
    config = ModelConfig.from_folder(folder)
    positions = min(config.max_position_embeddings, max_positions or config.max_position_embeddings)
    with TensorFolder(folder, expected_tensors(config), progress) as tensors:
        builder = _Builder(config, ops, tensors)
        plan = builder.model(head_dtype, positions)
        if builder.problems:
            raise CheckpointError(folder, builder.problems)
        assert not tensors.names_left, "every tensor is used exactly once"
    return Model(config, ops, plan)


class _Builder:
    """Takes each tensor once, checks its values and hands it on. After a problem it only goes on checking."""

    def __init__(self, config: ModelConfig, ops: Ops, tensors: TensorFolder) -> None:
        self.config = config
        self.ops = ops
        self.tensors = tensors
        self.problems: list[str] = []

    def model(self, head_dtype: str, positions: int) -> ModelPlan:
        config = self.config
        tied = config.tie_word_embeddings
        embedding = self.table(EMBEDDING, embedding=True, head_dtype=head_dtype if tied else None)
        layers = tuple(self.layer(layer_names(config, index)) for index in range(config.num_layers))
        return ModelPlan(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            act=config.act,
            eps=config.rms_norm_eps,
            rope=self.ops.rope_tables(config.head_dim, config.rope_theta, config.rope_scaling, positions),
            embedding=embedding,
            layers=layers,
            head_gain=self.gain(FINAL_NORM),
            head=embedding if tied else self.table(HEAD, embedding=False, head_dtype=head_dtype),
        )

    def layer(self, names: LayerNames) -> LayerPlan:
        return LayerPlan(
            attn_gain=self.gain(names.attn_norm),
            qkv=self.linear(names.qkv),
            attn_sub_gain=self.gain(names.attn_sub_norm) if names.attn_sub_norm else None,
            o=self.linear(names.o),
            ffn_gain=self.gain(names.ffn_norm),
            gate_up=self.linear(names.gate_up),
            ffn_sub_gain=self.gain(names.ffn_sub_norm) if names.ffn_sub_norm else None,
            down=self.linear(names.down),
        )

    def table(self, name: str, *, embedding: bool, head_dtype: str | None) -> Table:
        """bf16 and f32 go on as they are, f16 as f32 (bf16 would round it)."""
        weight = self.floats(name)
        if weight.dtype == torch.float16:
            weight = weight.float()
        return None if self.problems else self.ops.pack_table(weight, embedding=embedding, head_dtype=head_dtype)

    def gain(self, name: str) -> Tensor:
        return self.floats(name).float()

    def floats(self, name: str) -> Tensor:
        tensor = self.tensors.take(name)
        if not is_finite(tensor):
            self.problems.append(f"{name} holds NaN or infinity")
        return tensor

    def linear(self, names: LinearNames) -> Weights:
        segments = [self.segment(name, num_outputs) for name, num_outputs in names.projections]
        return None if self.problems else self.ops.pack(segments)

    def segment(self, name: str, num_outputs: int) -> tuple[Tensor, Tensor]:
        """One projection -> (planes uint8 [N/4, K], row_scale f32 [N])."""
        weight = self.tensors.take(name + ".weight")
        if self.config.weights == "master":
            planes, scale = self.ternarized(name, weight)
        else:
            planes, scale = weight, self.stored_scale(name)
            if has_unused_code(planes):
                self.problems.append(f"{name}.weight holds the unused code 3: it is not packed ternary, or damaged")
        return planes, torch.full((num_outputs,), scale, dtype=torch.float32)

    def ternarized(self, name: str, master: Tensor) -> tuple[Tensor, float]:
        mean = absmean(master)
        if not 0 < mean < math.inf:
            self.problems.append(f"{name}.weight has a mean magnitude of {mean:g}; it must be finite and above 0")
            return master, mean
        return ternarize(master, mean)

    def stored_scale(self, name: str) -> float:
        """The multiplier of the outputs; where the stored scale divides, its reciprocal is kept in fp32, unrounded."""
        stored = self.tensors.take(name + ".weight_scale").float().reshape(())
        scale = float(1.0 / stored if self.config.weights == "packed_divide" else stored)
        if not 0 < scale < math.inf:
            self.problems.append(f"{name}.weight_scale is {float(stored):g}; a scale must be finite and above 0")
        return scale
