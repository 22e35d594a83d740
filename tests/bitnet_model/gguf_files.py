"""GGUF files written from the plain definition of the format, value by value."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tools.checkpoint_weights import unpack_rows

U32, F32, STRING, ARRAY = 4, 6, 8, 9
FLOAT_TYPE, HALF_TYPE, I2_S_TYPE = 0, 1, 36
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def i2s_bytes(ternary: Sequence[int], scale: float) -> bytes:
    """128 values a block in 32 bytes; byte p has the values p, 32+p, 64+p, 96+p from the high bits down."""
    packed = bytearray()
    for start in range(0, len(ternary), 128):
        block = ternary[start : start + 128]
        for p in range(32):
            codes = [block[p + 32 * part] + 1 for part in range(4)]
            packed.append(codes[0] << 6 | codes[1] << 4 | codes[2] << 2 | codes[3])
    return bytes(packed) + struct.pack("<f", scale) + bytes(28)


@dataclass
class Gguf:
    """A file in the making: `metadata` name -> (type, value), `tensors` name -> (type, rows first shape, bytes)."""

    metadata: dict[str, tuple[int, Any]] = field(default_factory=dict)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = field(default_factory=dict)
    version: int = 3

    def write(self, path: Path) -> Path:
        header = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))
        for key, (kind, value) in self.metadata.items():
            header += text(key) + struct.pack("<I", kind) + value_bytes(kind, value)
        body = b""
        for name, (kind, shape, data) in self.tensors.items():
            dims = b"".join(struct.pack("<Q", size) for size in reversed(shape))
            header += text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, len(body))
            body += data + bytes(-len(data) % 32)
        path.write_bytes(header + bytes(-len(header) % 32) + body)
        return path


def value_bytes(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(value_bytes(element, one) for one in values)
    return struct.pack({U32: "<I", F32: "<f"}[kind], value)


def gguf_of(folder: Path) -> Gguf:
    """The packed checkpoint of a folder, as the published conversion of such a model looks."""
    config = json.loads((folder / "config.json").read_text())
    name = "bitnet-b1.58"
    numbers = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
    }
    metadata: dict[str, tuple[int, Any]] = {"general.architecture": (STRING, name)}
    metadata |= {f"{name}.{key}": (U32, value) for key, value in numbers.items()}
    metadata[f"{name}.attention.layer_norm_rms_epsilon"] = (F32, config["rms_norm_eps"])
    metadata[f"{name}.rope.freq_base"] = (F32, config["rope_theta"])
    metadata["tokenizer.ggml.tokens"] = (ARRAY, (STRING, ["a", "bc", "<end>"]))
    metadata["tokenizer.ggml.token_type"] = (ARRAY, (U32, [1, 1, 3]))
    metadata["tokenizer.ggml.bos_token_id"] = (U32, config["bos_token_id"])
    metadata["tokenizer.ggml.eos_token_id"] = (U32, config["eos_token_id"])
    weights = load_file(folder / "model.safetensors")
    tensors = dict(entry(weights, key) for key in weights if not key.endswith("_scale"))
    return Gguf(metadata, tensors)


def entry(weights: dict[str, Tensor], key: str) -> tuple[str, tuple[int, tuple[int, ...], bytes]]:
    tensor = weights[key]
    if key == "model.embed_tokens.weight":
        return "token_embd.weight", (HALF_TYPE, tuple(tensor.shape), tensor.half().numpy().tobytes())
    if key == "model.norm.weight":
        return "output_norm.weight", (FLOAT_TYPE, tuple(tensor.shape), tensor.float().numpy().tobytes())
    _, _, index, rest = key.removesuffix(".weight").split(".", 3)
    name = f"blk.{index}.{NAMES[rest]}.weight"
    if tensor.dtype != torch.uint8:
        return name, (FLOAT_TYPE, tuple(tensor.shape), tensor.float().numpy().tobytes())
    ternary = unpack_rows(tensor)
    scale = float(weights[key + "_scale"].float())
    return name, (I2_S_TYPE, tuple(ternary.shape), i2s_bytes(ternary.reshape(-1).tolist(), scale))
