"""Writes a trained model as a checkpoint folder in the packed 2B-4T format.

Four ternary rows share a byte: stored row r of uint8 [N/4, K] holds rows r, r+N/4, r+2N/4, r+3N/4 in bit pairs from the
lowest, code = ternary + 1; the bf16 `weight_scale` [1] multiplies.  Embedding and gains are bf16, there is no head.

Source: transformers `integrations/bitnet.py` (AutoBitLinear, offline) and the files of microsoft/bitnet-b1.58-2B-4T.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from .model import DemoConfig, DemoModel, absmean
from .vocabulary import BEGIN, CHAT_TEMPLATE, END, END_OF_TURN, special_id

HEADER_BYTES = 256  # more than a tensor's entry in the header of a safetensors file
# Fields of DemoConfig as config.json spells them.
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(ternary int8 [N, K], scale bf16 [1]) of a master weight, by the formula the training forward uses."""
    scale = absmean(weight)
    ternary = (weight / scale).round_().clamp_(-1, 1).to(torch.int8)
    return ternary, scale.to(torch.bfloat16).reshape(1)


def pack_ternary(ternary: Tensor) -> Tensor:
    """int8 [N, K] in {-1, 0, 1} -> uint8 [N/4, K]; N must be a multiple of four, the format has no padding rule."""
    out_size, in_size = ternary.shape
    if out_size % 4:
        raise ValueError(f"{out_size} output rows, the packed format needs a multiple of 4")
    codes = (ternary + 1).to(torch.uint8).view(4, out_size // 4, in_size)
    return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6


def unpack_ternary(packed: Tensor) -> Tensor:
    """The inverse of `pack_ternary`."""
    return torch.cat([(packed >> shift & 3).to(torch.int8) - 1 for shift in (0, 2, 4, 6)])


def packed_tensors(model: DemoModel) -> dict[str, Tensor]:
    """All tensors of the checkpoint by name."""
    tensors: dict[str, Tensor] = {}
    for name, param in model.named_parameters():
        value = param.detach().cpu()
        if name.endswith("_proj.weight"):
            ternary, scale = ternary_codes(value)
            tensors[name] = pack_ternary(ternary)
            tensors[name + "_scale"] = scale
        else:
            tensors[name] = value.to(torch.bfloat16)
    return tensors


def model_config(config: DemoConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json in the spelling of the published 2B-4T file."""
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **{name: getattr(config, field) for field, name in CONFIG_NAMES.items()},
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": special_id(tokenizer, BEGIN),
        "eos_token_id": special_id(tokenizer, END),
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def generation_config(config: DemoConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: both end tokens, and the sampling the answers of the card were drawn with."""
    return {
        "bos_token_id": special_id(tokenizer, BEGIN),
        "eos_token_id": [special_id(tokenizer, END), special_id(tokenizer, END_OF_TURN)],
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "max_length": config.max_positions,
    }


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with the chat template of 2B-4T."""
    added = {
        str(token_id): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "added_tokens_decoder": added,
        "bos_token": BEGIN,
        "eos_token": END,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def load_checkpoint(path: Path) -> DemoModel:
    """The model of a checkpoint.pt."""
    state = torch.load(path, map_location="cpu", mmap=True)
    model = DemoModel(DemoConfig(**state["config"]))
    model.load_state_dict(state["model"])
    return model


def parts_of(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in order, cut so that the file of each part stays below `max_bytes`; a larger tensor has its own."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        file_bytes = tensor.nbytes + HEADER_BYTES
        if parts[-1] and size + file_bytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += file_bytes
    return parts


def write_weights(tensors: dict[str, Tensor], out: Path, max_part_bytes: int) -> None:
    """model.safetensors, or numbered parts and their index; files of an earlier export are replaced.

    Written beside and moved: a server that maps the old file keeps it.
    """
    parts = parts_of(tensors, max_part_bytes)
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else ["model.safetensors"]
    for name, part in zip(names, parts, strict=True):
        temporary = out / (name + ".tmp")
        save_file(part, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
        temporary.replace(out / name)
    for old in out.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()
    if len(parts) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def export(checkpoint: Path, tokenizer_path: Path, out: Path, max_part_bytes: int = 1 << 40) -> int:
    """Write the model folder; returns the size of its weights in bytes."""
    model = load_checkpoint(checkpoint)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    files = {
        "config.json": model_config(model.config, tokenizer),
        "generation_config.json": generation_config(model.config, tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer),
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    tensors = packed_tensors(model)
    write_weights(tensors, out, max_part_bytes)
    return sum(tensor.nbytes for tensor in tensors.values())
