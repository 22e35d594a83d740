"""Dense bf16 models of the same shape: plain torch as CUDA graphs, and transformers as its users run it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Figure, Options, kv_bytes, open_bench
from benchmarks.gpu.dense import DenseModel, DenseShape


def torch_graphs(options: Options) -> Iterator[Figure]:
    """torch's own matrix products and attention, one graph a step."""
    bench, shape = open_bench(options), dense_shape(options)
    model = DenseModel(shape, bench.device)
    for num_rows in options.batches:
        taken = bench.seconds(bench.captured(model.decoder(num_rows, options.context)))
        yield figure(bench, shape, model.num_bytes, num_rows, taken)
    taken = bench.seconds(bench.captured(model.prefill(options.prompt)))
    yield Figure(f"prompt of {options.prompt} tokens", taken * 1e3, "ms")


def transformers_eager(options: Options) -> Iterator[Figure]:
    """A Llama of the same shape with random bf16 weights, one forward a token, its own growing cache."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    bench, shape = open_bench(options), dense_shape(options)
    config = LlamaConfig(
        hidden_size=shape.linears[0][1],
        intermediate_size=shape.linears[3][1],
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=2 * options.context,
        tie_word_embeddings=True,
    )
    with torch.device(bench.device), torch.inference_mode():
        model: Any = LlamaForCausalLM(config).to(torch.bfloat16).eval()
        num_bytes = sum(parameter.nbytes for parameter in model.parameters())
        for num_rows in options.batches:
            cache: Any = DynamicCache()
            pages = (num_rows, shape.num_kv_heads, options.context - 1, shape.head_dim)
            for layer in range(shape.num_layers):
                cache.update(*(torch.zeros(pages, dtype=torch.bfloat16) for _ in range(2)), layer)
            token = torch.zeros(num_rows, 1, dtype=torch.int64)
            taken = bench.seconds(partial(next_tokens, model, token, cache))
            yield figure(bench, shape, num_bytes, num_rows, taken)
        prompt = torch.zeros(1, options.prompt, dtype=torch.int64)
        taken = bench.seconds(partial(first_token, model, prompt))
        yield Figure(f"prompt of {options.prompt} tokens", taken * 1e3, "ms")


def next_tokens(model: Any, token: Tensor, cache: Any) -> Tensor:
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"  # renamed during 5.x
    best: Tensor = model(token, **{name: cache}, use_cache=True).logits[:, -1].argmax(-1).cpu()
    return best


def first_token(model: Any, prompt: Tensor) -> Tensor:
    best: Tensor = model(prompt, logits_to_keep=1).logits[:, -1].argmax(-1).cpu()
    return best


def dense_shape(options: Options) -> DenseShape:
    """The checkpoint's shape, read from its config."""
    config = json.loads((options.folder / "config.json").read_text())
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    size = hidden // heads
    return DenseShape(
        [((heads + 2 * kv_heads) * size, hidden), (hidden, heads * size), (2 * ffn, hidden), (hidden, ffn)],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        vocab_size=config["vocab_size"],
    )


def figure(bench: Bench, shape: DenseShape, num_bytes: int, num_rows: int, taken: float) -> Figure:
    """Beside its own floor: every weight and every key and value read once."""
    moved = num_bytes + num_rows * kv_bytes(shape, bench.options.context, "bf16") * shape.num_layers
    return Figure(f"batch {num_rows}", num_rows / taken, "tok/s", num_rows * bench.bytes_per_s / moved)
