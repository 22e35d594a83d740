"""Random weights of a BitNet b1.58 model, tensor by tensor, and the safetensors writer that streams them to disk.

Every tensor is a function of (seed, name) alone, so "packed" and "master" checkpoints of one seed hold the same ternary
weights and scales. Gains are chosen so that the model is alive: q.k/sqrt(d) has std ~1, each sub-layer adds about the
same amount to the residual stream, and the sum dwarfs the embedding ~30x, so that the last token does not simply
predict itself. Dead (1e-32) and negative channels are there because the real 2B-4T weights have them.
Knows tensors, not config files or tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Format: TypeAlias = Literal["packed", "master", "llama"]

NONZERO_SHARE = 0.58  # real checkpoints hold about 40 % zeros
MEAN_SCALE = 1.6
EMBEDDING_STD = 0.6
SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.uint8: "U8"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model; `head_dim` 0 means hidden // heads."""

    layers: int
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint; `make` builds it when its turn comes, so that one is in memory at a time."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, specs: Sequence[TensorSpec]) -> None:
    """Write one file, holding one tensor at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.num_bytes
        header[spec.name] = {
            "dtype": SAFETENSORS_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for spec in specs:
            tensor = spec.make().contiguous()
            assert tensor.dtype == spec.dtype, spec.name
            assert tuple(tensor.shape) == spec.shape, spec.name
            file.write(tensor.view(torch.uint8).reshape(-1).numpy().data)


def pack_rows(ternary: Tensor) -> Tensor:
    """int8 [N, K] of -1, 0, 1 -> uint8 [N/4, K]: row r holds rows r, r+N/4, r+2N/4, r+3N/4 from the low bits up."""
    num_rows, num_columns = ternary.shape
    assert num_rows % 4 == 0, "the format has no padding rule"
    codes = (ternary + 1).to(torch.uint8).view(4, num_rows // 4, num_columns)
    return codes[0] | (codes[1] << 2) | (codes[2] << 4) | (codes[3] << 6)


def unpack_rows(planes: Tensor) -> Tensor:
    """The inverse of `pack_rows`: uint8 [N/4, K] -> int8 [N, K]."""
    return torch.cat([((planes >> shift) & 3).to(torch.int8) - 1 for shift in (0, 2, 4, 6)], 0)


def random_ternary(seed: int, name: str, num_rows: int, num_columns: int) -> Tensor:
    """int8 [N, K], +1 and -1 equally likely."""
    uniform = torch.rand(num_rows, num_columns, generator=_generator(seed, name))
    half = NONZERO_SHARE / 2
    return (uniform < half).to(torch.int8) - (uniform > 1 - half).to(torch.int8)


def random_scale(seed: int, name: str) -> Tensor:
    """bf16 [1], a mean|W| in the range seen in the 2B-4T weights."""
    uniform = torch.rand(1, generator=_generator(seed, name + "#s")).item()
    return torch.tensor([1.1 + 1.1 * uniform]).to(torch.bfloat16)


def random_master(seed: int, name: str, num_rows: int, num_columns: int) -> Tensor:
    """bf16 [N, K] whose absmean quantization is random_ternary(name) with random_scale(name).

    Zeros become |w| < 0.35 of the scale and ones more than 0.6, far from the threshold at 0.5, and the sum is corrected
    so that mean|W| is the scale up to rounding.
    """
    ternary = random_ternary(seed, name, num_rows, num_columns)
    scale = random_scale(seed, name).float().item()
    generator = _generator(seed, name + "#m")
    uniform = torch.rand(num_rows, num_columns, generator=generator)
    sign = torch.where(torch.rand(num_rows, num_columns, generator=generator) < 0.5, -1.0, 1.0)
    nonzero = ternary != 0
    small = 0.35 * scale * uniform
    small_sum = (small * ~nonzero).sum(dtype=torch.float64).item()
    needed = (scale * ternary.numel() - small_sum) / nonzero.sum().item()
    jitter = (uniform - 0.5) * 2 * (needed - 0.75 * scale)
    large = needed + jitter - jitter[nonzero].mean()
    return torch.where(nonzero, ternary.float() * large, small * sign).to(torch.bfloat16)


def random_gain(seed: int, name: str, size: int, mean: float, dead: float = 0.0, negative: float = 0.0) -> Tensor:
    """bf16 [size], lognormal around `mean`, with shares of near-zero (`dead`) and of `negative` channels."""
    generator = _generator(seed, name)
    gain = mean * torch.exp(0.15 * torch.randn(size, generator=generator))
    if dead:
        gain = torch.where(torch.rand(size, generator=generator) < dead, torch.full_like(gain, 1.05e-32), gain)
    if negative:
        gain = torch.where(torch.rand(size, generator=generator) < negative, -gain, gain)
    return gain.to(torch.bfloat16)


def tensor_specs(shape: Shape, fmt: Format, seed: int) -> list[TensorSpec]:
    """The tensors of a checkpoint in file order, under the names of the published ones."""
    specs = [_table(seed, "model.embed_tokens.weight", "emb", shape)]
    for index in range(shape.layers):
        specs += _layer_specs(shape, fmt, seed, f"model.layers.{index}.")
    out_gain = 3.0 / (EMBEDDING_STD * shape.hidden**0.5)
    specs.append(_gain(seed, "model.norm.weight", "norm", shape.hidden, out_gain))
    if fmt == "llama":
        specs.append(_table(seed, "lm_head.weight", "head", shape))
    return specs


def _layer_specs(shape: Shape, fmt: Format, seed: int, prefix: str) -> list[TensorSpec]:
    hidden, inter = shape.hidden, shape.inter
    query_size, kv_size = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    step = 30 * EMBEDDING_STD / (2 * shape.layers) ** 0.5
    # Without sub-norms silu(g) * u of std s is about 0.4 s^2, and the down projection amplifies that.
    post = max(1e-3, (step / _gain_of(inter) / 0.4) ** 0.5) / _gain_of(hidden) if fmt == "llama" else 1.3

    def linear(name: str, num_outputs: int, num_inputs: int) -> list[TensorSpec]:
        return _linear(seed, fmt, prefix + name, num_outputs, num_inputs)

    attn, mlp = "self_attn.", "mlp."
    specs = [
        _gain(seed, prefix + "input_layernorm.weight", prefix + "in", hidden, 1.05 / _gain_of(hidden)),
        _gain(seed, prefix + "post_attention_layernorm.weight", prefix + "post", hidden, post),
        *linear(attn + "q_proj", query_size, hidden),
        *linear(attn + "k_proj", kv_size, hidden),
        *linear(attn + "v_proj", kv_size, hidden),
    ]
    if fmt != "llama":
        name, gain = prefix + attn + "attn_sub_norm.weight", step / _gain_of(query_size)
        specs.append(_gain(seed, name, prefix + "asn", hidden, gain, dead=0.01, negative=0.02))
    specs += linear(attn + "o_proj", hidden, query_size)
    specs += linear(mlp + "gate_proj", inter, hidden) + linear(mlp + "up_proj", inter, hidden)
    if fmt != "llama":
        name, gain = prefix + mlp + "ffn_sub_norm.weight", step / _gain_of(inter)
        specs.append(_gain(seed, name, prefix + "fsn", inter, gain, dead=0.05))
    return specs + linear(mlp + "down_proj", hidden, inter)


def _linear(seed: int, fmt: Format, name: str, num_outputs: int, num_inputs: int) -> list[TensorSpec]:
    weight, scale = name + ".weight", name + ".weight_scale"
    if fmt == "master":
        shape = (num_outputs, num_inputs)
        return [TensorSpec(weight, torch.bfloat16, shape, lambda: random_master(seed, name, *shape))]

    def planes() -> Tensor:
        return pack_rows(random_ternary(seed, name, num_outputs, num_inputs))

    def divisor() -> Tensor:
        return (1.0 / random_scale(seed, name).float()).to(torch.bfloat16)

    make_scale = divisor if fmt == "llama" else lambda: random_scale(seed, name)
    return [
        TensorSpec(weight, torch.uint8, (num_outputs // 4, num_inputs), planes),
        TensorSpec(scale, torch.bfloat16, (1,), make_scale),
    ]


def _gain(
    seed: int, name: str, key: str, size: int, mean: float, dead: float = 0.0, negative: float = 0.0
) -> TensorSpec:
    return TensorSpec(
        name, torch.bfloat16, (size,), lambda: random_gain(seed, key, size, mean, dead=dead, negative=negative)
    )


def _table(seed: int, name: str, key: str, shape: Shape) -> TensorSpec:
    size = (shape.vocab, shape.hidden)

    def make() -> Tensor:
        return (EMBEDDING_STD * torch.randn(size, generator=_generator(seed, key))).to(torch.bfloat16)

    return TensorSpec(name, torch.bfloat16, size, make)


def _gain_of(num_inputs: int) -> float:
    """The factor by which a random ternary linear amplifies the std of its input."""
    return float((num_inputs * NONZERO_SHARE) ** 0.5 * MEAN_SCALE)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
