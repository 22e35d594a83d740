"""The two model shapes that speed is measured on, and what one step of them costs at least.

Weights are random: speed does not depend on them. Checkpoints are written once, into a folder outside the repository.
Knows no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.checkpoint_weights import Shape
from tools.make_checkpoint import PRESETS, write_checkpoint

CACHE = Path.home() / ".cache" / "bitnet-serve-peers"
"""Checkpoints, GGUF files and the peers' sources and builds: gigabytes that a run can make again."""

SHAPES: dict[str, Shape] = {
    "2b4t": PRESETS["2b4t"],
    "small": Shape(layers=8, hidden=512, inter=1536, heads=8, kv_heads=2, head_dim=0, vocab=8192, context=2048),
    "toy": Shape(layers=2, hidden=256, inter=512, heads=4, kv_heads=2, head_dim=0, vocab=512, context=1024),
}
KV_BYTES = 2  # of one number in the cache: bf16 here, f16 in llama.cpp


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step has to read and to multiply."""

    num_bytes: float
    macs: float


def checkpoint(name: str, cache: Path) -> Path:
    """The folder of a shape's random checkpoint, written if it is not there yet."""
    folder = cache / "checkpoints" / name
    if not (folder / "model.safetensors").exists():
        print(f"writing {folder} ...")
        part = folder.with_name(name + ".part")
        write_checkpoint(part, "packed", "tiny", **{field: getattr(SHAPES[name], field) for field in Shape.__slots__})
        part.rename(folder)
    return folder


def ternary_weights(shape: Shape) -> int:
    """Weights of all layers."""
    kv_size = shape.kv_heads * shape.head_size
    attention = shape.hidden * (2 * shape.heads * shape.head_size + 2 * kv_size)
    return shape.layers * (attention + 3 * shape.hidden * shape.inter)


def step_cost(shape: Shape, *, tokens: int, keys: int, logits: int, weight_bits: float, head_bits: float) -> Cost:
    """One step over `tokens` tokens that reads `keys` keys and as many values, and computes `logits` rows of logits."""
    ternary, head = ternary_weights(shape), shape.vocab * shape.hidden
    cached = keys * shape.layers * 2 * shape.kv_heads * shape.head_size * KV_BYTES
    return Cost(ternary * weight_bits / 8 + head * head_bits / 8 + cached, ternary * tokens + head * logits)
