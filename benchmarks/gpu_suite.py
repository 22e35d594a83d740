"""How near to the card's limits is the GPU wing, and is it right? Everything in one run, under ten minutes.

    python -m benchmarks.gpu_suite [--preset 2b4t] [--sections checks limits linears attention steps prefill dense]
                                   [--batches 1 8 32 128 256] [--context 1024] [--prompt 2048] [--json FOLDER]

Fetches nothing: the random checkpoint is written on the spot. Limits (copy bandwidth, int8 and bf16 matrix rates) are
measured in the same run, and every figure is set against them. Kernels are timed over all layers' weights in turn, as
captured graphs, so that weights come from memory and not from the L2 cache. `dense` is the baseline: plain torch, bf16
weights of the same shape, as a CUDA graph. Device "cpu" is Triton's interpreter at toy size: it shows that the script
works, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cpu_fallback
import triton_kernels
from benchmarks.gpu_baseline import DenseModel, DenseShape
from benchmarks.report import write
from bitnet_model.batch import ForwardBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from tools.make_checkpoint import write_checkpoint
from triton_kernels.graphs import CudaCapture

BLOCK_TOKENS = 32
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the card reaches in this run, with torch's own kernels: bytes/s copied, operations/s multiplied."""

    bytes_per_s: float
    int8_per_s: float
    bf16_per_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """A model on a device, and how things are timed there."""

    model: Model
    folder: Path
    device: torch.device
    context: int
    prompt: int
    batches: tuple[int, ...]
    repeat: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        """Median time of one call, after a warm-up; on a GPU until its results are there."""
        times = []
        work()
        for _ in range(self.repeat):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def captured(self, work: Callable[[], Tensor]) -> Callable[[], object]:
        """The work as a graph on a GPU, and as it is elsewhere."""
        return CudaCapture()(work)[1] if self.on_gpu else work

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def batch_of(rows: Sequence[tuple[Tensor, int]], blocks_per_row: int) -> ForwardBatch:
    """Rows of (token ids of this step, tokens computed before), each with blocks of its own, all logits wanted."""
    counts = torch.tensor([len(ids) for ids, _ in rows])
    positions = [torch.arange(before, before + len(ids)) for ids, before in rows]
    tables = torch.arange(len(rows) * blocks_per_row, dtype=torch.int32).view(len(rows), blocks_per_row)
    slots = [tables[i, at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS for i, at in enumerate(positions)]
    return ForwardBatch(
        token_ids=torch.cat([ids for ids, _ in rows]),
        positions=torch.cat(positions),
        slots=torch.cat(slots).to(torch.int64),
        block_tables=tables,
        lengths=torch.tensor([before + len(ids) for ids, before in rows], dtype=torch.int32),
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32),
        logit_rows=torch.arange(int(counts.sum())),
    )


def random_ids(count: int, vocab: int) -> Tensor:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(count))


def checks(bench: Bench) -> list[Row]:
    """Exact sums, equal bits in every batch and chunk, and the CPU wing beside it."""
    shapes, lengths = (((40, 96), (640, 2560)), (1, 2, 3, 17, 65, 300)) if bench.on_gpu else (((40, 96),), (1, 3, 65))
    rows = [exact_sums(bench, n, k, tokens) for n, k in shapes for tokens in lengths]
    count, singles, blocks = (70, 6, 3) if bench.on_gpu else (6, 1, 1)
    ids = random_ids(count, bench.model.config.vocab_size)
    other = ids.flip(0)
    for dtype in ("bf16", "int8"):
        cache = bench.model.new_cache(4 * blocks, BLOCK_TOKENS, dtype)
        whole = bench.model.forward(batch_of([(ids, 0)], blocks), cache)
        cache = bench.model.new_cache(4 * blocks, BLOCK_TOKENS, dtype)
        parts = [bench.model.forward(batch_of([(ids[:-singles], 0), (other, 0)], blocks), cache)]
        parts[0] = parts[0][: count - singles]
        for at in range(count - singles, count):
            step = [(ids[at : at + 1], at), *[(other[:1], at)] * (count - 1 - at)]  # in ever smaller company
            parts.append(bench.model.forward(batch_of(step, blocks), cache)[:1])
        rows.append({"check": f"same bits in any batch and chunk, {dtype} cache", "ok": equal(torch.cat(parts), whole)})
    cpu = load_model(bench.folder, cpu_fallback.load("torch", None), head_dtype="int8")
    ours, theirs = (
        model.forward(batch_of([(ids, 0)], blocks), model.new_cache(blocks, BLOCK_TOKENS, "bf16")).cpu()
        for model in (bench.model, cpu)
    )
    error = float((ours - theirs).square().mean().sqrt() / theirs.std())
    rows.append({"check": "hidden states of the CPU wing, rms difference / std", "ok": error < 0.05, "value": error})
    return rows


def exact_sums(bench: Bench, n: int, k: int, tokens: int) -> Row:
    """The integer sums behind the outputs: with scales of one, outputs are the sums themselves."""
    rng = torch.Generator().manual_seed(n + tokens)
    ternary = torch.randint(-1, 2, (n, k), generator=rng)
    quarters = (ternary + 1).view(4, n // 4, k)
    planes = quarters[0] + (quarters[1] << 2) + (quarters[2] << 4) + (quarters[3] << 6)
    ops = bench.model.ops
    codes = torch.randint(-126, 127, (tokens, k), generator=rng)
    codes[:, 0] = 127  # then the scale is one
    q = ops.quantize(codes.float())
    got = ops.ternary_linear(q, ops.pack([(planes.to(torch.uint8), torch.ones(n))]))
    return {"check": f"integer sums {n}x{k}, T {tokens}", "ok": equal(got, (codes @ ternary.T).float())}


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu(), b.cpu())


def measure_limits(bench: Bench) -> Limits:
    size = 8192 if bench.on_gpu else 64
    source = torch.empty(size * size * 8, dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    a = torch.ones(size, size, dtype=torch.int8, device=bench.device)
    x = torch.ones(size, size, dtype=torch.bfloat16, device=bench.device)
    return Limits(
        bytes_per_s=2 * source.numel() / bench.seconds(lambda: target.copy_(source)),
        int8_per_s=2 * size**3 / bench.seconds(lambda: torch._int_mm(a, a.T)),
        bf16_per_s=2 * size**3 / bench.seconds(lambda: x @ x.T),
    )


def linears(bench: Bench, limits: Limits) -> list[Row]:
    """Every ternary linear of the model at every form, one layer's time in a pass over all layers."""
    ops, layers = bench.model.ops, bench.model.plan.layers
    rows = []
    for name in ("qkv", "o", "gate_up", "down"):
        handles = [getattr(layer, name) for layer in layers]
        n, k = handles[0].num_outputs, handles[0].num_inputs
        for tokens in (1, 2, 8, 32, 64, 256, 2048) if bench.on_gpu else (3,):
            q = ops.quantize(torch.randn(tokens, k))

            def chain(handles: list[Any] = handles, q: Any = q) -> Tensor:
                for handle in handles:
                    out: Tensor = ops.ternary_linear(q, handle)
                return out

            taken = bench.seconds(bench.captured(chain)) / len(handles)
            num_bytes = n * k / 4 + tokens * (k + 4 * n)
            bound = max(num_bytes / limits.bytes_per_s, 2 * tokens * n * k / limits.int8_per_s)
            rows.append({"linear": name, "N": n, "K": k, "T": tokens, "us": taken * 1e6, "fraction": bound / taken})
    return rows


def decode_batch(bench: Bench, num_rows: int) -> tuple[ForwardBatch, int]:
    """One token a row at the last position of the context, and the blocks the cache needs."""
    blocks = -(-bench.context // BLOCK_TOKENS)
    ids = random_ids(num_rows, bench.model.config.vocab_size)
    return batch_of([(ids[i : i + 1], bench.context - 1) for i in range(num_rows)], blocks), num_rows * blocks


def kv_bytes(bench: Bench, dtype: str) -> int:
    """Bytes of one row's keys and values in one layer at the context."""
    plan = bench.model.plan
    per_head = 2 * plan.head_dim if dtype == "bf16" else plan.head_dim + 4
    return 2 * plan.num_kv_heads * per_head * bench.context


def attention(bench: Bench, limits: Limits) -> list[Row]:
    """Paged decode attention alone, over all layers' caches."""
    plan = bench.model.plan
    rows = []
    for dtype in ("bf16", "int8"):
        for num_rows in bench.batches:
            batch, blocks = decode_batch(bench, num_rows)
            cache = bench.model.new_cache(blocks, BLOCK_TOKENS, dtype)
            q = torch.randn(num_rows, plan.num_heads, plan.head_dim, device=bench.device)
            placed = (batch.block_tables.to(bench.device), batch.lengths.to(bench.device), batch.starts)
            work = partial(attend_all, bench, q, cache, placed)
            taken = bench.seconds(work) / len(plan.layers)
            bound = num_rows * kv_bytes(bench, dtype) / limits.bytes_per_s
            rows.append({"cache": dtype, "batch": num_rows, "us": taken * 1e6, "fraction": bound / taken})
    return rows


def attend_all(bench: Bench, q: Tensor, cache: Any, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    for layer in range(len(bench.model.plan.layers)):
        bench.model.ops.paged_attention(q, cache, layer, *rows)


def steps(bench: Bench, limits: Limits) -> list[Row]:
    """Whole decode steps, from token ids on the host to the best token of each row on the host."""
    model, config = bench.model, bench.model.config
    report = model.memory_report()
    head = report["head"] if model.plan.head is not model.plan.embedding else config.vocab_size * config.hidden_size * 2
    rows = []
    for dtype in ("bf16", "int8"):
        for num_rows in bench.batches:
            batch, blocks = decode_batch(bench, num_rows)
            cache = model.new_cache(blocks, BLOCK_TOKENS, dtype)
            taken = bench.seconds(partial(best_tokens, model, batch, cache))
            moved = report["layers"] + head + num_rows * kv_bytes(bench, dtype) * len(model.plan.layers)
            rows.append({"cache": dtype, "batch": num_rows, **rate(num_rows, taken, moved / limits.bytes_per_s)})
    return rows


def best_tokens(model: Model, batch: ForwardBatch, cache: Any) -> Tensor:
    """One step, until the best token of each row is on the host."""
    extra = torch.empty(len(batch.logit_rows), 0, dtype=torch.int64)
    return model.top_logits(model.forward(batch, cache), 1, extra)[0].cpu()


def rate(num_tokens: int, taken: float, bound: float) -> Row:
    """What a step of `num_tokens` took (s) beside its bound (s), the time of a perfect one."""
    return {"ms": taken * 1e3, "tok_s": num_tokens / taken, "bound_ms": bound * 1e3, "fraction": bound / taken}


def prefill(bench: Bench, limits: Limits) -> list[Row]:
    """One prompt in one step, until its first token is on the host."""
    model = bench.model
    batch = batch_of([(random_ids(bench.prompt, model.config.vocab_size), 0)], -(-bench.prompt // BLOCK_TOKENS))
    cache = model.new_cache(batch.block_tables.shape[1], BLOCK_TOKENS, "bf16")
    last = dataclasses.replace(batch, logit_rows=batch.logit_rows[-1:])
    taken = bench.seconds(partial(best_tokens, model, last, cache))
    weights = sum(h.num_outputs * h.num_inputs for la in model.plan.layers for h in (la.qkv, la.o, la.gate_up, la.down))
    bound = 2 * bench.prompt * weights / limits.int8_per_s
    return [{"prompt": bench.prompt, **rate(bench.prompt, taken, bound)}]


def dense(bench: Bench, limits: Limits) -> list[Row]:
    """The baseline: the same shape in bf16 with torch's own matrix products and attention, as one graph a step."""
    plan = bench.model.plan
    layer = plan.layers[0]
    shape = DenseShape(
        [(h.num_outputs, h.num_inputs) for h in (layer.qkv, layer.o, layer.gate_up, layer.down)],
        num_layers=len(plan.layers),
        num_heads=plan.num_heads,
        num_kv_heads=plan.num_kv_heads,
        head_dim=plan.head_dim,
        vocab_size=bench.model.config.vocab_size,
    )
    model = DenseModel(shape, bench.device)
    rows = []
    for num_rows in bench.batches:
        taken = bench.seconds(bench.captured(model.decoder(num_rows, bench.context)))
        moved = model.num_bytes + num_rows * kv_bytes(bench, "bf16") * len(plan.layers)
        rows.append({"batch": num_rows, **rate(num_rows, taken, moved / limits.bytes_per_s)})
    return rows


SECTIONS: dict[str, tuple[str, Callable[[Bench, Limits], list[Row]]]] = {
    "linears": ("Ternary linears, all layers' weights in turn", linears),
    "attention": ("Paged decode attention, launched one by one", attention),
    "steps": ("Whole decode steps", steps),
    "prefill": ("One prompt in one step", prefill),
    "dense": ("Baseline: dense bf16 of the same shape in plain torch, one graph a step", dense),
}


def run(bench: Bench, sections: Sequence[str], out: Path | None) -> bool:
    """Print (and keep) a table for each section; False if a check failed."""
    ok = True
    if "checks" in sections:
        rows = checks(bench)
        ok = all(row["ok"] for row in rows)
        write(out and out / "gpu_checks.json", "Is it right?", rows)
    limits = measure_limits(bench)
    name = bench.model.ops.describe()["isa"]
    rows = [
        {"limit": "copy", "GB/s": limits.bytes_per_s / 1e9},
        {"limit": "int8", "TOPS": limits.int8_per_s / 1e12},
        {"limit": "bf16", "TOPS": limits.bf16_per_s / 1e12},
    ]
    write(out and out / "gpu_limits.json", f"Limits of {name}, by torch's own kernels", rows)
    for section, (question, measure) in SECTIONS.items():
        if section in sections:
            about = f"{question} ({name}, context {bench.context}, median of {bench.repeat})"
            write(out and out / f"gpu_{section}.json", about, measure(bench, limits))
    return ok


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2b4t")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", nargs="+", default=["checks", *SECTIONS], choices=["checks", "limits", *SECTIONS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--head-dtype", default="bf16")
    parser.add_argument("--json", type=Path, help="folder for the results")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), "packed", args.preset)
        model = load_model(path, triton_kernels.load(args.device), head_dtype=args.head_dtype)
        bench = Bench(
            model, path, torch.device(args.device), args.context, args.prompt, tuple(args.batches), args.repeat
        )
        return 0 if run(bench, args.sections, args.json) else 1


if __name__ == "__main__":
    sys.exit(main())
