"""Each kernel against the card's limits. Weights are those of all layers in turn, so that they come from memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import triton_kernels
from benchmarks.gpu.bench import BLOCK_TOKENS, Bench, Figure, Options, decode_batch, kv_bytes, open_bench
from bitnet_model.ops import Ops
from triton_kernels.tuning import dense_tile
from triton_kernels.wing import TritonWing

CHAIN = 150
"""About the kernels of a step."""


def launches(options: Options) -> Iterator[Figure]:
    """What one small kernel costs in a chain of them, one after another and with overlapping launches."""
    bench = open_bench(options)
    x = torch.ones(1, 128, device=bench.device)
    for pdl in (False, True) if options.on_gpu else (False,):
        ops: Ops = triton_kernels.load(options.device, pdl=pdl)
        work = bench.captured(partial(chain, ops, x, CHAIN if options.on_gpu else 2))
        length = CHAIN if options.on_gpu else 2
        yield Figure(f"one of {length} small kernels, pdl {pdl}", bench.seconds(work) / length * 1e6, "us")


def chain(ops: Ops, x: Tensor, length: int) -> Tensor:
    for _ in range(length):
        out: Tensor = ops.quantize(x).scale
    return out


def linears(options: Options) -> Iterator[Figure]:
    """Every ternary linear of the model, on packed weights and on int8 ones: a layer's time in a pass over all layers.

    Which of the two a step takes is what the tuning table or the heuristic says; a length that it never gives to int8
    weights has no figure for them.
    """
    bench, model = open_bench(options), options.load(dense="on")
    device = cast(TritonWing, model.ops).opened
    for name in ("qkv", "o", "gate_up", "down"):
        handles = [getattr(layer, name) for layer in model.plan.layers]
        n, k = handles[0].num_outputs, handles[0].num_inputs
        for tokens in (1, 2, 8, 16, 32, 64, 128, 256, 512, 2048) if options.on_gpu else (3, 16):
            q = model.ops.quantize(torch.randn(tokens, k))
            forms = [("packed", [replace(w, dense=None) for w in handles])]
            if dense_tile(tokens, n, handles[0].padded_k, device) is not None:
                forms.append(("int8", handles))
            for form, held in forms:
                taken = bench.seconds(bench.captured(partial(all_layers, model.ops, q, held))) / len(handles)
                num_bytes = n * k / (4 if form == "packed" else 1) + tokens * (k + 4 * n)
                bound = max(num_bytes / bench.bytes_per_s, 2 * tokens * n * k / bench.int8_per_s)
                yield Figure(f"{name} {n}x{k}, T {tokens}, {form}", taken * 1e6, "us", bound * 1e6)


def all_layers(ops: Ops, q: Any, handles: list[Any]) -> Tensor:
    for handle in handles:
        out = ops.ternary_linear(q, handle)
    return out


def attention(options: Options) -> Iterator[Figure]:
    """Paged decode attention alone, over all layers' caches."""
    bench, model = open_bench(options), options.load()
    plan, wing = model.plan, cast(TritonWing, model.ops)
    for dtype in ("bf16", "int8"):
        for num_rows in options.batches:
            batch, blocks = decode_batch(num_rows, options.context, model.config.vocab_size)
            cache = model.new_cache(blocks, BLOCK_TOKENS, dtype)  # type: ignore[arg-type]
            q = torch.randn(num_rows, plan.num_heads, plan.head_dim, device=bench.device)
            rows = wing.rows(batch.block_tables, batch.lengths, batch.starts, plan.num_heads, cache)
            work = bench.captured(partial(attend_all, wing, q, cache, rows, len(plan.layers)))
            taken = bench.seconds(work) / len(plan.layers)
            bound = num_rows * kv_bytes(plan, options.context, dtype) / bench.bytes_per_s
            yield Figure(f"{dtype} cache, batch {num_rows}", taken * 1e6, "us", bound * 1e6)


def attend_all(wing: Any, q: Tensor, cache: Any, rows: Any, num_layers: int) -> Tensor:
    for layer in range(num_layers):
        out: Tensor = wing.attend(q, cache, layer, rows)
    return out


def heads(options: Options) -> Iterator[Figure]:
    """Final norm, head and the 104 best tokens (40 and a penalty window) of each row."""
    bench = open_bench(options)
    for dtype in ("bf16", "int8", "int8-rescore"):
        model = options.load(head_dtype=dtype)
        vocab, hidden = model.config.vocab_size, model.config.hidden_size
        for num_rows in (1, 32, 256) if options.on_gpu else (1,):
            x = torch.randn(num_rows, hidden, device=bench.device)
            extra = torch.empty(num_rows, 0, dtype=torch.int64, device=bench.device)
            taken = bench.seconds(partial(model.top_logits, x, 104, extra))
            yield Figure(
                f"{dtype}, batch {num_rows}",
                taken * 1e6,
                "us",
                head_seconds(bench, dtype, num_rows, vocab, hidden) * 1e6,
            )


def head_seconds(bench: Bench, dtype: str, num_rows: int, vocab: int, hidden: int) -> float:
    """The time of a perfect head: its table read once, its logits written, or its products."""
    width, rate = (2, bench.bf16_per_s) if dtype == "bf16" else (1, bench.int8_per_s)
    num_bytes = vocab * hidden * width + 4 * num_rows * vocab
    return max(num_bytes / bench.bytes_per_s, 2 * num_rows * vocab * hidden / rate)
