"""Whole steps: decode from token ids on the host to the best token of each row on the host, and one long prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import (
    BLOCK_TOKENS,
    Bench,
    Figure,
    Options,
    batch_of,
    decode_batch,
    kv_bytes,
    num_weights,
    open_bench,
    random_ids,
)
from benchmarks.gpu.kernels import head_seconds
from bitnet_model.batch import DecodeBatch, ForwardBatch
from bitnet_model.model import Model
from bitnet_model.ops import DecodeFunction
from service.engine.request import Limits, Request, SamplingParams
from service.engine.sampler import draw_batch

# what an H200 should reach and what is aimed for with the 2B-4T shape at 1k context, by (KV dtype, batch), in tok/s
TARGETS = {
    ("bf16", 1): (1500, 2000),
    ("bf16", 32): (18_000, 25_000),
    ("bf16", 256): (28_000, 35_000),
    ("int8", 256): (28_000, 55_000),
}
PREFILL_TARGET_MS = (15, 10)
ROUNDS = 8
GUESSES = (3, 7, 15)


def steps(options: Options) -> Iterator[Figure]:
    """Decode steps at each batch with both caches, in rounds and with guesses, and 2048 tokens of a prompt."""
    bench, model = open_bench(options), options.load()
    for dtype in ("bf16", "int8"):
        for num_rows in options.batches:
            yield decode_step(bench, model, dtype, num_rows, f"{dtype} cache, batch {num_rows}")
    if model.decode is not None:
        for num_rows in options.batches:
            yield rounds(bench, model, model.decode, num_rows)
    for count in GUESSES:
        if count < options.context:
            yield guesses(bench, model, count)
    yield prefill(bench, model)


def variants(options: Options) -> Iterator[Figure]:
    """The same with both ways of launching, and with the head that int8 finds the candidates for."""
    bench = open_bench(options)
    for head_dtype, pdl in (("bf16", False), ("bf16", True), ("int8-rescore", True)):
        model = options.load(head_dtype=head_dtype, pdl=pdl)
        for num_rows in options.batches:
            case = f"{head_dtype} head, {'overlapping' if pdl else 'separate'} launches, batch {num_rows}"
            yield decode_step(bench, model, "bf16", num_rows, case, head_dtype)


def decode_step(bench: Bench, model: Model, dtype: str, num_rows: int, case: str, head_dtype: str = "bf16") -> Figure:
    options = bench.options
    taken = bench.seconds(decode_work(model, options, dtype, num_rows))
    bound = step_seconds(bench, model, dtype, head_dtype, num_rows)
    wanted = TARGETS.get((dtype, num_rows)) if is_the_target(model, options) else None
    least, aim = wanted or (None, None)
    return Figure(case, num_rows / taken, "tok/s", num_rows / bound, least, aim)


def rounds(bench: Bench, model: Model, decode: DecodeFunction, num_rows: int) -> Figure:
    """Tokens drawn and fed back on the device, as the server decodes: the last of the context."""
    options = bench.options
    whole, num_blocks = decode_batch(num_rows, options.context, model.config.vocab_size)
    rows = DecodeBatch(whole.token_ids, whole.lengths - (ROUNDS - 1), whole.block_tables)
    params = SamplingParams(seed=0, temperature=0.0, repeat_penalty=1.0)
    request = Request("round", (1,), params, Limits(n_ctx=options.context, n_batch=1))
    work = partial(
        decode, rows, draw_batch([request] * num_rows, ROUNDS), model.new_cache(num_blocks, BLOCK_TOKENS, "bf16")
    )
    taken = bench.seconds(work) / ROUNDS
    wanted = TARGETS.get(("bf16", num_rows), (None, None)) if is_the_target(model, options) else (None, None)
    bound = num_rows / step_seconds(bench, model, "bf16", "bf16", num_rows)
    return Figure(f"bf16 cache, {ROUNDS} rounds a call, batch {num_rows}", num_rows / taken, "tok/s", bound, *wanted)


def guesses(bench: Bench, model: Model, count: int) -> Figure:
    """One row that checks so many guesses at the end of the context: what it says if all of them are right."""
    options = bench.options
    ids = random_ids(1 + count, model.config.vocab_size)
    batch = batch_of([(ids, options.context - len(ids))], -(-options.context // BLOCK_TOKENS))
    cache = model.new_cache(batch.block_tables.shape[1], BLOCK_TOKENS, "bf16")
    taken = bench.seconds(partial(best_tokens, model, batch, cache))
    return Figure(f"bf16 cache, one row, {count} guesses that are right", len(ids) / taken, "tok/s")


def step_seconds(bench: Bench, model: Model, dtype: str, head_dtype: str, num_rows: int) -> float:
    """The time of a perfect step: linears, head and cache one after the other, each at the card's limits."""
    plan, config = model.plan, model.config
    weights = num_weights(plan)
    linears = max(weights / 4 / bench.bytes_per_s, 2 * num_rows * weights / bench.int8_per_s)
    head = head_seconds(bench, head_dtype, num_rows, config.vocab_size, config.hidden_size)
    cache = num_rows * kv_bytes(plan, bench.options.context, dtype) * len(plan.layers) / bench.bytes_per_s
    return linears + head + cache


def decode_work(model: Model, options: Options, dtype: str, num_rows: int) -> Callable[[], Tensor]:
    """A decode step at the end of the context, over a cache of its own."""
    batch, blocks = decode_batch(num_rows, options.context, model.config.vocab_size)
    return partial(best_tokens, model, batch, model.new_cache(blocks, BLOCK_TOKENS, dtype))  # type: ignore[arg-type]


def prompt_work(model: Model, options: Options) -> Callable[[], Tensor]:
    """One prompt in one step, likewise."""
    batch = batch_of([(random_ids(options.prompt, model.config.vocab_size), 0)], -(-options.prompt // BLOCK_TOKENS))
    cache = model.new_cache(batch.block_tables.shape[1], BLOCK_TOKENS, "bf16")
    return partial(best_tokens, model, dataclasses.replace(batch, logit_rows=batch.logit_rows[-1:]), cache)


def best_tokens(model: Model, batch: ForwardBatch, cache: Any) -> Tensor:
    """One step, until the best token of each row is on the host."""
    extra = torch.empty(len(batch.logit_rows), 0, dtype=torch.int64)
    return model.top_logits(model.forward(batch, cache), 1, extra)[0].cpu()


def prefill(bench: Bench, model: Model) -> Figure:
    """One prompt in one step, until its first token is on the host."""
    prompt = bench.options.prompt
    taken = bench.seconds(prompt_work(model, bench.options))
    bound = 2 * prompt * num_weights(model.plan) / bench.int8_per_s
    wanted = PREFILL_TARGET_MS if is_the_target(model, bench.options) and prompt == 2048 else (None, None)
    return Figure(f"prompt of {prompt} tokens", taken * 1e3, "ms", bound * 1e3, *wanted)


def is_the_target(model: Model, options: Options) -> bool:
    return model.config.hidden_size == 2560 and len(model.plan.layers) == 30 and options.context == 1024
