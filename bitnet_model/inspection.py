"""What a checkpoint holds: sizes by part, parameters, the share of zeros, and the KV cache's bytes per token.

Reads headers, and the ternary weights where the zeros are to be counted; packs nothing, so no wing is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitnet_model.config import ModelConfig
from bitnet_model.layout import EMBEDDING, HEAD, LayerNames, expected_tensors, layer_names
from bitnet_model.shards import TensorFolder
from bitnet_model.ternary import absmean, ternarize

SCALE_BYTES = 4
_ZEROS_IN_BYTE = np.array([sum((byte >> shift) & 3 == 1 for shift in (0, 2, 4, 6)) for byte in range(256)], np.int64)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts of one folder. Sizes in bytes as they lie on disk; `zeros` is None where nobody counted."""

    config: ModelConfig
    embedding_bytes: int
    layer_bytes: int
    head_bytes: int
    ternary_params: int
    float_params: int
    zeros: float | None

    @property
    def disk_bytes(self) -> int:
        return self.embedding_bytes + self.layer_bytes + self.head_bytes

    @property
    def loaded_bytes(self) -> int:
        """Of the weights once loaded: masters are packed then."""
        if self.config.weights != "master":
            return self.disk_bytes
        return self.embedding_bytes + self.head_bytes + self.ternary_params // 4

    def kv_bytes(self, dtype: str) -> int:
        """Of one token's keys and values in all layers; "int8" has a scale for each head beside its codes."""
        config = self.config
        per_head = config.head_dim + SCALE_BYTES if dtype == "int8" else 2 * config.head_dim
        return 2 * config.num_layers * config.num_kv_heads * per_head


def inspect(folder: Path, *, count_zeros: bool, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Look at a folder. `progress` hears (done, total) bytes where zeros are counted. Raises CheckpointError."""
    config = ModelConfig.from_folder(folder)
    with TensorFolder(folder, expected_tensors(config), progress) as tensors:
        sizes = {name: tensors.bytes_of(name) for name in tensors.names_left}
        projections = [item for index in range(config.num_layers) for item in _projections(layer_names(config, index))]
        ternary_params = sum(rows * columns for _, rows, columns in projections)
        zeros = None
        if count_zeros:
            found = sum(_count_zeros(tensors, name + ".weight", config.weights == "master") for name, *_ in projections)
            zeros = found / ternary_params
    embedding, head = sizes.pop(EMBEDDING), sizes.pop(HEAD, 0)
    tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return Inspection(config, embedding, sum(sizes.values()), head, ternary_params, tables, zeros)


def _projections(layer: LayerNames) -> list[tuple[str, int, int]]:
    """(name, rows, columns) of a layer's ternary tensors."""
    return [(name, rows, linear.num_inputs) for linear in layer.linears() for name, rows in linear.projections]


def _count_zeros(tensors: TensorFolder, name: str, is_master: bool) -> int:
    weight = tensors.take(name)
    planes = ternarize(weight, absmean(weight))[0] if is_master else weight
    histogram = np.bincount(planes.numpy().reshape(-1), minlength=256)
    return int(histogram @ _ZEROS_IN_BYTE)
