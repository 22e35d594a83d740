"""Write random-weight BitNet b1.58 checkpoints in the true on-disk formats, for tests and measurements.

packed   microsoft/bitnet-b1.58-2B-4T: model_type "bitnet", projections uint8 [N/4, K] with a bf16 weight_scale that
         MULTIPLIES (= mean|W|), sub-norms, relu2, tied embedding.
master   microsoft/bitnet-b1.58-2B-4T-bf16: the same model as bf16 master weights, without scales.
llama    Falcon3-*-1.58bit, Falcon-E-*, Llama3-8B-1.58: model_type "llama", the same packing with a weight_scale that
         DIVIDES (= 1/mean|W|), no sub-norms, SwiGLU, untied bf16 lm_head.

Tensors are made and written one at a time, so memory stays at about one tensor even for the full 2B-4T shape.

    python -m tools.make_checkpoint OUT --format packed --preset tiny
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from tools.checkpoint_tokenizer import BuiltTokenizer, build_tokenizer
from tools.checkpoint_weights import Format, Shape, TensorSpec, tensor_specs, write_safetensors

PRESETS = {
    "tiny": Shape(2, 128, 384, 4, 2, 0, 512, 512),
    "small": Shape(6, 512, 1408, 8, 2, 0, 4096, 2048),
    "medium": Shape(12, 1024, 2816, 8, 2, 0, 32256, 4096),
    "2b4t": Shape(30, 2560, 6912, 20, 5, 0, 128256, 4096),
    "falcon3-1b": Shape(18, 2048, 8192, 8, 4, 256, 131072, 8192),
    "falcon3-3b": Shape(22, 3072, 9216, 12, 4, 256, 131072, 32768),
    "falcon3-7b": Shape(28, 3072, 23040, 12, 4, 256, 131072, 32768),
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 8192),
}


def write_checkpoint(
    out: Path, fmt: str, preset: str = "tiny", seed: int = 0, *, shards: int = 1, **overrides: int
) -> Path:
    """Write a checkpoint folder and return it.

    fmt is packed, master or llama; `overrides` replace fields of the preset's Shape (layers, hidden, inter, heads,
    kv_heads, head_dim, vocab, context). With `shards` > 1 the weights are spread over that many files and an index.
    """
    fmt = _format(fmt)
    shape = dataclasses.replace(PRESETS[preset], **overrides)
    assert fmt == "llama" or shape.head_size * shape.heads == shape.hidden, "attn_sub_norm has hidden entries"
    out.mkdir(parents=True, exist_ok=True)
    built = build_tokenizer(shape.vocab, chat_tags=fmt == "llama")
    built.tokenizer.save(str(out / "tokenizer.json"))
    _dump(out / "tokenizer_config.json", built.config)
    _dump(out / "special_tokens_map.json", {key: built.config[key] for key in ("bos_token", "eos_token")})
    _dump(out / "config.json", model_config(shape, fmt, built))
    _dump(out / "generation_config.json", _generation_config(shape, built))
    specs = tensor_specs(shape, fmt, seed)
    if shards == 1:
        write_safetensors(out / "model.safetensors", specs)
    else:
        _write_sharded(out, specs, shards)
    return out


def model_config(shape: Shape, fmt: Format, built: BuiltTokenizer) -> dict[str, Any]:
    """The config.json of a format, with the quirks of the published ones."""
    common = {
        "attention_dropout": 0.0,
        "bos_token_id": built.bos_id,
        "eos_token_id": built.eos_id,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inter,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    if fmt == "llama":
        return common | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "head_dim": shape.head_size,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000042,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"},
        }
    return common | {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        # The published config.json names these although the repository does not hold the files.
        "auto_map": {
            "AutoConfig": "configuration_bitnet.BitNetConfig",
            "AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM",
        },
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online" if fmt == "master" else "offline",
        },
    }


def _generation_config(shape: Shape, built: BuiltTokenizer) -> dict[str, Any]:
    return {
        "_from_model_config": True,
        "bos_token_id": built.bos_id,
        "eos_token_id": [built.eos_id, built.eot_id],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "max_length": shape.context,
    }


def _write_sharded(out: Path, specs: Sequence[TensorSpec], shards: int) -> None:
    """Contiguous runs of tensors of about equal size, and the index that names them."""
    total = sum(spec.num_bytes for spec in specs)
    groups: list[list[TensorSpec]] = [[] for _ in range(shards)]
    written = 0
    for spec in specs:
        groups[min(written * shards // total, shards - 1)].append(spec)
        written += spec.num_bytes
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(out / name, group)
        weight_map |= {spec.name: name for spec in group}
    _dump(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _format(name: str) -> Format:
    for fmt in get_args(Format):
        if fmt == name:
            return fmt  # type: ignore[no-any-return]  # get_args is untyped
    raise ValueError(f"format must be one of {get_args(Format)}, not {name!r}")


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=get_args(Format), default="packed")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny")
    names = [field.name for field in dataclasses.fields(Shape)]
    for name in names:
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    given = parser.parse_args()
    overrides = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    out = write_checkpoint(given.out, given.format, given.preset, given.seed, shards=given.shards, **overrides)
    num_bytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"wrote {out}: {given.format} {given.preset}, {num_bytes / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
