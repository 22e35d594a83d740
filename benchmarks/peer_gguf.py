"""A GGUF file of random TQ2_0 weights in the shape of one of our checkpoints, with the checkpoint's tokenizer.

The architecture is llama.cpp's "bitnet": the same tensors as ours, sub-norms and the tied head included. What differs:
its graph has silu(gate) * up where 2B-4T has relu(gate)^2 * up (one pointwise pass either way), TQ2_0 spends 2.0625
bits a weight on a scale for every 256, and activations get a scale for every 256 too. The embedding, which is the head
as well, is f16 as llama.cpp's converter leaves it, or q6_K as its quantize tool makes it.

Blocks are drawn, not quantized: every bit pattern but the unused ternary code 3 is a weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tools.checkpoint_weights import EMBEDDING_STD, Shape

HEADS = {"q6_K": 6.5625, "f16": 16.0}
"""The types a head may have, the faster first, and their bits a weight."""
WEIGHT_BITS = 2.0625
BLOCK = 256  # values that share a scale, in TQ2_0 and in q6_K
Array: TypeAlias = NDArray[Any]


def write_gguf(path: Path, shape: Shape, head: str, tokenizer: Path) -> None:
    """Write one model file. Needs the package gguf, and sizes that are multiples of 256."""
    import gguf

    assert shape.hidden % BLOCK == 0, shape.hidden
    assert shape.inter % BLOCK == 0, shape.inter
    writer = gguf.GGUFWriter(path, "bitnet")
    add_sizes(writer, shape)
    add_vocabulary(writer, tokenizer)
    table = {"q6_K": gguf.GGMLQuantizationType.Q6_K, "f16": gguf.GGMLQuantizationType.F16}[head]
    random = np.random.default_rng(0)
    for name, values in tensors(shape, head, random):
        dtype = {"token_embd.weight": table}.get(name, gguf.GGMLQuantizationType.TQ2_0)
        writer.add_tensor(name, values, raw_dtype=None if values.dtype == np.float32 else dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: Any, shape: Shape) -> None:
    """The model's numbers."""
    writer.add_name("random ternary weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inter)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)


def add_vocabulary(writer: Any, tokenizer: Path) -> None:
    """The byte-level BPE of our checkpoint: its tokens, merges and control tokens."""
    import gguf

    raw = json.loads(tokenizer.read_text())
    special = {token["id"]: token["content"] for token in raw["added_tokens"]}
    tokens = {index: token for token, index in raw["model"]["vocab"].items()} | special
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in raw["model"]["merges"]]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([tokens[index] for index in range(len(tokens))])
    writer.add_token_types([kinds.CONTROL if index in special else kinds.NORMAL for index in range(len(tokens))])
    writer.add_token_merges(merges)
    ids = {token: index for index, token in special.items()}
    writer.add_bos_token_id(ids["<|begin_of_text|>"])
    writer.add_eos_token_id(ids["<|end_of_text|>"])
    writer.add_eot_token_id(ids["<|eot_id|>"])


def tensors(shape: Shape, head: str, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Names and values: f32 [N], f16 [N, K], or the bytes of a block type [N, bytes of K values]."""
    hidden, inter, kv_size = shape.hidden, shape.inter, shape.kv_heads * shape.head_size
    if head == "f16":
        embedding = EMBEDDING_STD * random.standard_normal((shape.vocab, hidden), dtype=np.float32)
        yield "token_embd.weight", embedding.astype(np.float16)
    else:
        yield "token_embd.weight", random_q6(random, shape.vocab, hidden)
    yield "output_norm.weight", np.ones(hidden, np.float32)
    for layer in range(shape.layers):
        for norm, size in (("attn", hidden), ("attn_sub", hidden), ("ffn", hidden), ("ffn_sub", inter)):
            yield f"blk.{layer}.{norm}_norm.weight", np.ones(size, np.float32)
        for name, rows, width in (
            ("attn_q", hidden, hidden),
            ("attn_k", kv_size, hidden),
            ("attn_v", kv_size, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inter, hidden),
            ("ffn_up", inter, hidden),
            ("ffn_down", hidden, inter),
        ):
            yield f"blk.{layer}.{name}.weight", random_tq2(random, rows, width)


def random_tq2(random: np.random.Generator, rows: int, width: int) -> Array:
    """uint8 [rows, width / 256 * 66]: four codes of two bits in each of 64 bytes, then the block's f16 scale."""
    blocks = rows * width // BLOCK
    codes = random.integers(0, 256, (blocks, BLOCK // 4), dtype=np.uint8)
    codes &= ~(codes & codes >> 1 & 0x55)  # no code 3
    scale = np.full((blocks, 1), width**-0.5, np.float16).view(np.uint8).reshape(blocks, 2)
    return np.concatenate([codes, scale], axis=1).reshape(rows, -1)


def random_q6(random: np.random.Generator, rows: int, width: int) -> Array:
    """uint8 [rows, width / 256 * 210]: 192 bytes of six-bit codes, 16 int8 scales, then the block's f16 scale."""
    blocks = rows * width // BLOCK
    codes = random.integers(0, 256, (blocks, BLOCK * 6 // 8), dtype=np.uint8)
    scales = random.integers(32, 128, (blocks, 16), dtype=np.uint8)
    scale = np.full((blocks, 1), EMBEDDING_STD / (18 * 80), np.float16).view(np.uint8).reshape(blocks, 2)
    return np.concatenate([codes, scales, scale], axis=1).reshape(rows, -1)
