"""The quantized math of a BitNet checkpoint evaluated in float64, and how far other logits are from it.

Independent of the server's code on purpose: it reads the folder with the safetensors library and writes the model
down once more, plainly, one sequence at a time. Rounding to codes is part of the model and stays; every other operation
is float64. Slow, for tests and checks on small checkpoints. Formats: packed (autobitlinear), bf16 masters, llama.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

CLEAR_GAP = 4.0


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """config.json, the float tensors as float64, and each projection as (ternary float64 [N, K], multiplier)."""

    config: dict[str, Any]
    floats: dict[str, Tensor]
    linears: dict[str, tuple[Tensor, float]]

    @property
    def eps(self) -> float:
        return float(self.config["rms_norm_eps"])

    @property
    def head_dim(self) -> int:
        default = self.config["hidden_size"] // self.config["num_attention_heads"]
        return int(self.config.get("head_dim") or default)

    @property
    def rope_theta(self) -> float:
        return float(self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Logits against a reference, over T positions.

    rms_error is in units of the reference's standard deviation, per position, then averaged; kl is KL(reference ||
    logits) in nats; clear_agreement is the share of equal argmax among the num_clear positions where the reference's
    gap between first and second exceeds CLEAR_GAP rms errors.
    """

    rms_error: float
    max_rms_error: float
    kl: float
    max_kl: float
    agreement: float
    clear_agreement: float
    num_clear: int


def load_reference(folder: Path) -> ReferenceModel:
    """Read a single-file checkpoint folder."""
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    divides = config["quantization_config"].get("linear_class", "bitlinear") == "bitlinear"
    linears = {}
    for weight_name in [name for name in tensors if name.endswith("_proj.weight")]:
        name, weight = weight_name.removesuffix(".weight"), tensors.pop(weight_name)
        if weight.dtype == torch.uint8:
            scale = tensors.pop(name + ".weight_scale").double().item()
            linears[name] = (_unpack(weight), 1 / scale if divides else scale)
        else:
            linears[name] = _ternarize(weight)
    return ReferenceModel(config, {name: tensor.double() for name, tensor in tensors.items()}, linears)


def reference_logits(model: ReferenceModel, token_ids: Sequence[int]) -> Tensor:
    """float64 [T, V]: the logits after each of the T tokens of one sequence."""
    x = model.floats["model.embed_tokens.weight"][torch.tensor(token_ids)]
    for index in range(model.config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        x = x + _attention(model, _norm(model, x, prefix + "input_layernorm"), prefix + "self_attn.")
        x = x + _mlp(model, _norm(model, x, prefix + "post_attention_layernorm"), prefix + "mlp.")
    head = model.floats.get("lm_head.weight", model.floats["model.embed_tokens.weight"])
    return _norm(model, x, "model.norm") @ head.T


def compare(logits: Tensor, reference: Tensor) -> Comparison:
    """[T, V] against float64 [T, V]."""
    logits = logits.double()
    rms = (logits - reference).square().mean(-1).sqrt()
    relative = rms / reference.std(-1)
    ours, theirs = torch.log_softmax(logits, -1), torch.log_softmax(reference, -1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    top = reference.topk(2, -1).values
    clear = top[:, 0] - top[:, 1] > CLEAR_GAP * rms
    agree = (logits.argmax(-1) == reference.argmax(-1)).double()
    return Comparison(
        rms_error=relative.mean().item(),
        max_rms_error=relative.max().item(),
        kl=kl.mean().item(),
        max_kl=kl.max().item(),
        agreement=agree.mean().item(),
        clear_agreement=agree[clear].mean().item() if clear.any() else 1.0,
        num_clear=int(clear.sum()),
    )


def _unpack(planes: Tensor) -> Tensor:
    """uint8 [N/4, K] -> float64 [N, K]."""
    return torch.cat([((planes >> shift) & 3).double() - 1 for shift in (0, 2, 4, 6)], 0)


def _ternarize(master: Tensor) -> tuple[Tensor, float]:
    """AutoBitLinear online: fp32 mean and reciprocal, the scale rounded to the dtype of the master."""
    mean = master.float().abs().mean().clamp_min(1e-5)
    ternary = (master.float() * (1 / mean)).round().clamp(-1, 1)
    return ternary.double(), mean.to(master.dtype).double().item()


def _linear(model: ReferenceModel, x: Tensor, name: str) -> Tensor:
    """[T, K] -> [T, N]: int8 codes per token, exact integer sums (below 2^53), one rescale."""
    weight, scale = model.linears[name]
    amax = x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    codes = (x * (127 / amax)).round().clamp(-127, 127)
    return (codes @ weight.T) * (amax / 127 * scale)


def _norm(model: ReferenceModel, x: Tensor, name: str) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + model.eps) * model.floats[name + ".weight"]


def _attention(model: ReferenceModel, h: Tensor, prefix: str) -> Tensor:
    config, size, num_tokens = model.config, model.head_dim, h.shape[0]
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def heads(name: str, count: int) -> Tensor:
        return _linear(model, h, prefix + name).view(num_tokens, count, size).transpose(0, 1)

    q, k = _rope(model, heads("q_proj", num_heads)), _rope(model, heads("k_proj", num_kv_heads))
    k = k.repeat_interleave(num_heads // num_kv_heads, 0)
    v = heads("v_proj", num_kv_heads).repeat_interleave(num_heads // num_kv_heads, 0)
    mask = torch.full((num_tokens, num_tokens), float("-inf"), dtype=torch.float64).triu(1)
    attended = torch.softmax(q @ k.transpose(1, 2) * size**-0.5 + mask, -1) @ v
    a = attended.transpose(0, 1).reshape(num_tokens, num_heads * size)
    if prefix + "attn_sub_norm.weight" in model.floats:
        a = _norm(model, a, prefix + "attn_sub_norm")
    return _linear(model, a, prefix + "o_proj")


def _rope(model: ReferenceModel, x: Tensor) -> Tensor:
    """NeoX halves: [heads, T, D] -> [heads, T, D]."""
    half = model.head_dim // 2
    frequencies = model.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
    cos, sin, left, right = angles.cos(), angles.sin(), x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def _mlp(model: ReferenceModel, h: Tensor, prefix: str) -> Tensor:
    gate, up = _linear(model, h, prefix + "gate_proj"), _linear(model, h, prefix + "up_proj")
    relu2 = model.config["hidden_act"] == "relu2"
    f = (torch.relu(gate).square() if relu2 else torch.nn.functional.silu(gate)) * up
    if prefix + "ffn_sub_norm.weight" in model.floats:
        f = _norm(model, f, prefix + "ffn_sub_norm")
    return _linear(model, f, prefix + "down_proj")
