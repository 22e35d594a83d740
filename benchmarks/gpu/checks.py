"""Is it right on this device? Every verb against the oracle, whole steps against each other and the CPU wing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch

import cpu_fallback
import triton_kernels
from benchmarks.gpu.bench import BLOCK_TOKENS, Figure, Options, batch_of, equal, open_bench, random_ids
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from bitnet_model.ops import CacheDtype, Ops
from service.engine.proof import MOST_BLOCKS, Trial, prove
from service.engine.runner import ModelRunner
from tests import oracle
from triton_kernels.device import open_device
from triton_kernels.pack import Weights, unpacked
from triton_kernels.selection import select
from triton_kernels.wing import TritonWing

LARGE, SMALL = (150, 40, 1000), (40, 5, 130)
"""Tokens, queries among them, and words of the vocabulary of what is checked verb by verb."""


def checks(options: Options) -> Iterator[Figure]:
    """Exact sums first: a wrong mask, scale or tile ends here."""
    model = options.load()
    shapes, lengths = (((40, 96), (640, 2560)), (1, 2, 3, 17, 65, 300)) if options.on_gpu else (((40, 96),), (1, 3))
    for dense in ("off", "on"):
        ops: Ops = triton_kernels.load(options.device, dense=dense)
        for n, k in shapes:
            for tokens in lengths:
                yield exact_sums(ops, n, k, tokens, f"int8 copies {dense}")
    yield from tuned_linears(model, (1, 2, 8, 32, 64, 100, 256, 700, 2048) if options.on_gpu else (3, 16))
    yield from best_tokens(options.device, *((33, 128256) if options.on_gpu else (2, 700)))
    yield from verbs(model.ops, *(LARGE if options.on_gpu else SMALL))
    for dtype in ("bf16", "int8"):
        yield same_bits(model, options, dtype)  # type: ignore[arg-type]
    yield cpu_wing(model, options)
    yield shortcuts(model, options)


def exact_sums(ops: Ops, n: int, k: int, tokens: int, how: str) -> Figure:
    """The integer sums behind the outputs: with scales of one, outputs are the sums themselves."""
    rng = np.random.default_rng(n + tokens)
    ternary = rng.integers(-1, 2, (n, k))
    planes = torch.from_numpy(oracle.plane_bytes(ternary))
    codes = torch.from_numpy(rng.integers(-126, 127, (tokens, k)))
    codes[:, 0] = 127  # then the scale is one
    got = ops.ternary_linear(ops.quantize(codes.float()), ops.pack([(planes, torch.ones(n))]))
    wrong = int((got.cpu() != (codes @ torch.from_numpy(ternary).T).float()).sum())
    return Figure(f"integer sums {n}x{k}, T {tokens}, {how}: wrong", wrong, "outputs", ok=wrong == 0)


def tuned_linears(model: Model, lengths: tuple[int, ...]) -> Iterator[Figure]:
    """The model's own linears with the tiles that a step takes, packed and as int8, against sums in float64."""
    wing, layer = cast(TritonWing, model.ops), model.plan.layers[0]
    for name in ("qkv", "o", "gate_up", "down"):
        w: Weights = getattr(layer, name)
        dense = unpacked(w)
        forms = [replace(w, dense=None), replace(w, dense=dense)]
        wrong = 0
        for tokens in lengths:
            q = wing.quantize(torch.randn(tokens, w.num_inputs, generator=torch.Generator().manual_seed(tokens)))
            sums = (q.codes.double() @ dense.weights.double().T).float()
            wanted = sums * (q.scale[:, None] * dense.row_scale[None, :])
            residual = torch.ones_like(wanted) if name in ("o", "down") else None
            for form in forms:
                got = wing.ternary_linear(q, form, residual)
                wrong += int((got != (wanted if residual is None else wanted + residual)).sum())
                if name == "gate_up":
                    gated = [wing.gate(q, form, None, 1e-5, act) for act in ("relu2", "silu")]
                    apart = [wing.gate_norm_quantize(wanted, None, 1e-5, act) for act in ("relu2", "silu")]
                    wrong += sum(int((a.codes != b.codes).sum()) for a, b in zip(gated, apart, strict=True))
        yield Figure(f"{name} of a layer at {len(lengths)} lengths, packed and int8: wrong", wrong, "", ok=wrong == 0)


def best_tokens(device: str, num_rows: int, vocab: int) -> Iterator[Figure]:
    """Selection against a sort that leaves equal logits as they are: plain, with ties, all equal, in order."""
    opened = open_device(torch.device(device))
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(num_rows, vocab, generator=rng)
    logits[0], logits[1] = (logits[0] * 2).round(), torch.arange(vocab).float()
    logits[-1] = 0.0
    extra = torch.randint(-1, vocab, (num_rows, 3), generator=rng)
    logits, extra = logits.to(device), extra.to(device)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    for k in (1, 40, 104, 168) if device == "cuda" else (1, 40):
        ids, values = select(logits, k, extra, opened)
        wanted = torch.cat([order[:, :k], extra], dim=1)
        picked = logits.gather(1, wanted.clamp(min=0)).masked_fill(wanted < 0, -torch.inf)
        same = equal(ids, wanted) and equal(values, picked)
        yield Figure(f"the best {k} of {num_rows} rows", float(same), "of 1", ok=same)


def verbs(ops: Ops, count: int, queries: int, vocab: int) -> Iterator[Figure]:
    """Largest distance of each verb from its definition in float64, on odd shapes; the limit is fp32 rounding."""
    rng = np.random.default_rng(9)
    x, gain = rng.standard_normal((5, 200)).astype(np.float32), rng.standard_normal(200).astype(np.float32)
    planes = torch.from_numpy(oracle.plane_bytes(np.eye(200, dtype=np.int64)))
    identity = ops.pack([(planes, torch.ones(200))])  # makes a wing's codes visible, times their scale
    for name, quantized, wanted in (
        ("quantize", ops.quantize(torch.from_numpy(x)), x),
        (
            "norm, quantize",
            ops.norm_quantize(torch.from_numpy(x), torch.from_numpy(gain), 1e-5),
            oracle.rms_norm(x, gain, 1e-5),
        ),
    ):
        scale = np.abs(wanted).max(1, keepdims=True) / 127
        yield distance(name, ops.ternary_linear(quantized, identity).cpu().numpy() / scale, wanted / scale, 0.501)
    gate_up = rng.standard_normal((5, 400)).astype(np.float32)
    for act in ("relu2", "silu"):
        product = oracle.gate(gate_up, act)
        scale = np.abs(product).max(1, keepdims=True) / 127
        q = ops.gate_norm_quantize(torch.from_numpy(gate_up), None, 1e-5, act)  # type: ignore[arg-type]
        yield distance(f"gate {act}", ops.ternary_linear(q, identity).cpu().numpy() / scale, product / scale, 0.501)
    yield from attention(ops, rng, count, queries)
    yield from head(ops, rng, vocab)


def attention(ops: Ops, rng: np.random.Generator, count: int, queries: int) -> Iterator[Figure]:
    """RoPE, cache and attention together: a prompt whose last tokens are attended from."""
    heads, kv_heads, size = 4, 2, 64
    tables = ops.rope_tables(size, 10000.0, None, count)
    qkv = rng.standard_normal((count, heads + 2 * kv_heads, size)).astype(np.float32)
    turned = oracle.rope(qkv, list(range(count)), 10000.0)
    keys, values = (oracle.bf16(part) for part in (turned[:, heads:-kv_heads], qkv[:, -kv_heads:]))
    wanted = oracle.attention(
        turned[-queries:, :heads].astype(np.float32), keys.astype(np.float32), values.astype(np.float32)
    )
    at = torch.arange(count)
    blocks = -(-count // BLOCK_TOKENS)
    for dtype, limit in (("bf16", 0.02), ("int8", 0.05)):
        cache = ops.new_cache(1, blocks, BLOCK_TOKENS, kv_heads, size, dtype)  # type: ignore[arg-type]
        q = ops.rope_write_kv(torch.from_numpy(qkv.reshape(count, -1)), at, tables, cache, 0, at)
        got = ops.paged_attention(
            q[-queries:].contiguous(),
            cache,
            0,
            torch.arange(blocks, dtype=torch.int32)[None],
            torch.tensor([count], dtype=torch.int32),
            torch.tensor([0, queries], dtype=torch.int32),
        )
        yield distance(f"RoPE and attention, {dtype} cache", got.cpu().numpy(), wanted, limit)


def head(ops: Ops, rng: np.random.Generator, vocab: int) -> Iterator[Figure]:
    """The tokens that int8 finds and bf16 scores are those of the bf16 head, with its bits, in any company."""
    x, gain, weight = (
        torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 200), (200,), (vocab, 200))
    )
    tables = [ops.pack_table(weight, embedding=False, head_dtype=dtype) for dtype in ("bf16", "int8-rescore")]
    extra = torch.tensor([[5, -1]] * 3)
    exact, rescored = (ops.head_topk(x, gain, 1e-5, table, 40, extra) for table in tables)
    same = equal(exact[0], rescored[0]) and equal(exact[1], rescored[1])
    yield Figure("int8-rescore head equals the bf16 head", float(same), "of 1", ok=same)
    company = torch.cat([x] * 22)
    together = ops.head(company, gain, 1e-5, tables[0])
    same = all(equal(ops.head(company[: at + 1], gain, 1e-5, tables[0])[at], together[at]) for at in (0, 15, 64))
    yield Figure("a row's bf16 logits alone and in company", float(same), "of 1", ok=same)


def distance(name: str, got: oracle.F64, wanted: oracle.F64, limit: float) -> Figure:
    worst = float(np.abs(got - wanted).max())
    return Figure(f"{name}: largest distance from float64", worst, "", least=limit, ok=worst <= limit)


def same_bits(model: Model, options: Options, dtype: CacheDtype) -> Figure:
    """One row as a prefill alone, and in chunks and single tokens in ever smaller company."""
    count, singles, blocks = (70, 6, 3) if options.on_gpu else (6, 1, 1)
    ids = random_ids(count, model.config.vocab_size)
    other = ids.flip(0)
    whole = model.forward(batch_of([(ids, 0)], blocks), model.new_cache(4 * blocks, BLOCK_TOKENS, dtype))
    cache = model.new_cache(8 * blocks, BLOCK_TOKENS, dtype)
    parts = [model.forward(batch_of([(ids[:-singles], 0), (other, 0)], blocks), cache)[: count - singles]]
    for at in range(count - singles, count):
        step = [(ids[at : at + 1], at), *[(other[:1], at)] * (count - 1 - at)]
        parts.append(model.forward(batch_of(step, blocks), cache)[:1].clone())
    same = equal(torch.cat(parts), whole)
    return Figure(f"same bits in any batch and chunk, {dtype} cache", float(same), "of 1", ok=same)


def cpu_wing(model: Model, options: Options) -> Figure:
    """Hidden states of both wings: one code that rounds the other way is a small step, a wrong kernel is not.

    Either is some 0.04 from float64 by itself (tests/numerics); together they were 0.059 apart on an H200 (2026-11-26).
    """
    count = 70 if options.on_gpu else 6
    blocks = -(-count // BLOCK_TOKENS)
    ids = random_ids(count, model.config.vocab_size)
    cpu = load_model(options.folder, cpu_fallback.load("torch", None), head_dtype="int8")
    ours, theirs = (
        one.forward(batch_of([(ids, 0)], blocks), one.new_cache(blocks, BLOCK_TOKENS, "bf16")).cpu()
        for one in (model, cpu)
    )
    error = float((ours - theirs).square().mean().sqrt() / theirs.std())
    return Figure("hidden states of the CPU wing: rms difference / std", error, "", least=0.08, ok=error < 0.08)


def shortcuts(model: Model, options: Options) -> Figure:
    """Recorded steps, draws and rounds beside the verbs, as a server compares them before it serves."""
    n_ctx, num_blocks = (128, MOST_BLOCKS) if options.on_gpu else (9, 1)
    runner = ModelRunner(model, model.ops, num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")
    trial = Trial(model.config.vocab_size, n_ctx, num_blocks, BLOCK_TOKENS, 1)
    doubts = prove(model, lambda: trial.run(runner))
    names = ", ".join(sorted({doubt.shortcut for doubt in doubts})) or "none"
    case = f"recorded steps, draws and rounds beside the verbs: given up ({names})"
    return Figure(case, len(doubts), "shortcuts", ok=not doubts)


def limits(options: Options) -> Iterator[Figure]:
    """What the card reaches by torch's own kernels, and what a launch costs inside a graph."""
    bench = open_bench(options)
    yield Figure("copy", bench.bytes_per_s / 1e9, "GB/s")
    yield Figure("int8 products", bench.int8_per_s / 1e12, "T/s")
    yield Figure("bf16 products", bench.bf16_per_s / 1e12, "T/s")
