"""How near to the machine's limits is every native kernel?

    python -m benchmarks.cpu_kernels [--threads 1 2] [--isa auto] [--only linear] [--seconds 0.3] [--cpu-time]
                                     [--library FILE] [--json FILE] [--plot FILE]

Shapes of 2B-4T (hidden 2560, 20/5 heads of 128, ffn 6912); several copies of each matrix in turn, so that weights come
from memory, as in a model. The limits (memory read, int8 dot products, fp32 products) are measured by cpu_limits.cpp,
built for this machine, before and after every case and in processor time; the higher counts, as the rate of a shared
machine's memory comes and goes. `--cpu-time` times the kernels so too,
one thread only: for a machine that is busy with other things. `bound` is what would limit a perfect kernel: its bytes
over the read bandwidth, or its int8 or fp32 products over their peak, whichever takes longest. `fraction` is that time
over the median time, `best` over the fastest. Pointwise kernels are set against the bytes they move.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.limits import Limits, build_limits, measure_limits
from benchmarks.report import OtherLoad, write
from cpu_fallback.native_handles import Cache, Quantized, Weights
from cpu_fallback.native_library import NativeLibrary
from cpu_fallback.native_loading import load
from cpu_fallback.native_wing import NativeCpuWing

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2560, 6912, 20, 5, 128, 128256
SHAPES = {"q|k|v": (3840, HIDDEN), "o": (HIDDEN, HIDDEN), "gate|up": (2 * FFN, HIDDEN), "down": (HIDDEN, FFN)}
LAYERS = 8
COPIES_BYTES = 80 << 20  # of one matrix: more than a cache holds
BLOCK_TOKENS = 32
KV_BYTES: dict[Literal["bf16", "int8"], float] = {"bf16": 2.0, "int8": 1.0 + 4 / HEAD_DIM}


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size; `macs` counts int8 products, `products` those of fp32, 0 where there are none."""

    kernel: str
    tokens: int
    num_bytes: int
    macs: int
    run: Callable[[], object]
    products: int = 0


def random_planes(rows: int, width: int) -> torch.Tensor:
    """Checkpoint bytes without code 3."""
    planes = torch.randint(0, 256, (rows // 4, width), dtype=torch.uint8)
    return planes & ~(planes & planes >> 1 & 0x55)


def all_linears(wing: NativeCpuWing, linears: list[Weights], inputs: dict[int, Quantized]) -> None:
    """Every linear once."""
    for weights in linears:
        wing.ternary_linear(inputs[weights.native.width], weights)


def linear_cases(wing: NativeCpuWing) -> Iterator[Case]:
    """The four linears of a layer, one kind by itself and then eight layers of all."""

    def pack(rows: int, width: int) -> Weights:
        return wing.pack([(random_planes(rows, width), torch.ones(rows))])

    kinds = {name: [pack(n, k) for _ in range(4 * COPIES_BYTES // (n * k))] for name, (n, k) in SHAPES.items()}
    layers = [linears[layer] for layer in range(LAYERS) for linears in kinds.values()]
    for name, linears in {**kinds, "layers": layers}.items():
        num_weights = sum(weights.native.rows * weights.native.width for weights in linears)
        for tokens in (1, 2, 4, 8, 16, 32, 128, 512):
            inputs = {k: wing.quantize(torch.randn(tokens, k)) for _, k in SHAPES.values()}
            run = partial(all_linears, wing, linears, inputs)
            yield Case(f"linear, {name}", tokens, num_weights // 4, num_weights * tokens, run)


def head_cases(wing: NativeCpuWing) -> Iterator[Case]:
    weight, gain = torch.randn(VOCAB, HIDDEN), torch.ones(HIDDEN)
    table = wing.pack_table(weight, embedding=True, head_dtype="int8")
    halves = wing.pack_table(weight, embedding=False, head_dtype="int4-rescore")
    del weight
    size = VOCAB * HIDDEN
    for tokens in (1, 2, 4, 8, 16, 32):
        x, none = torch.randn(tokens, HIDDEN), torch.zeros(tokens, 0, dtype=torch.int64)
        for k in (1, 40):
            run = partial(wing.head_topk, x, gain, 1e-5, table, k, none)
            yield Case(f"head, top {k}", tokens, size, size * tokens, run)
            run = partial(wing.head_topk, x, gain, 1e-5, halves, k, none)
            yield Case(f"head in halves, top {k}", tokens, size // 2, size * tokens, run)
        yield Case("head, logits", tokens, size, size * tokens, partial(wing.head, x, gain, 1e-5, table))
        yield Case("head in halves, logits", tokens, size, size * tokens, partial(wing.head, x, gain, 1e-5, halves))
    for tokens in (1, 512):
        ids = torch.randint(VOCAB, (tokens,))
        yield Case("embed", tokens, tokens * HIDDEN * 11 // 2, 0, partial(wing.embed, table, ids))


def pointwise_cases(wing: NativeCpuWing) -> Iterator[Case]:
    gain, ffn_gain = torch.ones(HIDDEN), torch.ones(FFN)
    cache = wing.new_cache(1, 64, BLOCK_TOKENS, KV_HEADS, HEAD_DIM, "bf16")
    tables = wing.rope_tables(HEAD_DIM, 500000.0, None, 2048)
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    for tokens in (1, 8, 512):
        x, gate_up, qkv = (torch.randn(tokens, n) for n in (HIDDEN, 2 * FFN, width))
        where = torch.arange(tokens)
        yield Case("norm_quantize", tokens, tokens * HIDDEN * 5, 0, partial(wing.norm_quantize, x, gain, 1e-5))
        yield Case(
            "gate_norm_quantize",
            tokens,
            tokens * FFN * 9,
            0,
            partial(wing.gate_norm_quantize, gate_up, ffn_gain, 1e-5, "relu2"),
        )
        yield Case(
            "rope_write_kv",
            tokens,
            tokens * (width + HEADS * HEAD_DIM) * 4,
            0,
            partial(wing.rope_write_kv, qkv, where, tables, cache, 0, where),
        )


def attention_cases(wing: NativeCpuWing) -> Iterator[Case]:
    for dtype, value_bytes in KV_BYTES.items():
        for what, rows, count, length in (
            ("200 keys", 1, 1, 200),
            ("200 keys", 8, 1, 200),
            ("200 keys", 32, 1, 200),
            ("2048 keys", 1, 1, 2048),
            ("2048 keys", 8, 1, 2048),
            ("prefill", 1, 512, 512),
            ("prefill, last chunk of 2048", 1, 512, 2048),
        ):
            blocks = -(-length // BLOCK_TOKENS)
            cache = wing.new_cache(1, rows * blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM, dtype)
            fill(wing, cache, rows * blocks * BLOCK_TOKENS)
            q = torch.randn(rows * count, HEADS, HEAD_DIM)
            tables = torch.arange(rows * blocks, dtype=torch.int32).view(rows, blocks)
            lengths = torch.full((rows,), length, dtype=torch.int32)
            starts = torch.arange(rows + 1, dtype=torch.int32) * count
            run = partial(wing.paged_attention, q, cache, 0, tables, lengths, starts)
            num_bytes = int(rows * length * KV_HEADS * HEAD_DIM * 2 * value_bytes)
            seen = rows * (count * length - count * (count - 1) // 2)  # keys, over all queries
            products = 2 * seen * HEADS * HEAD_DIM
            yield Case(f"attention {dtype}, {what}", rows * count, num_bytes, 0, run, products)


def fill(wing: NativeCpuWing, cache: Cache, slots: int) -> None:
    """Random keys and values: pages nobody wrote to would all be the same one."""
    qkv = torch.randn(slots, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    where = torch.arange(slots)
    wing.rope_write_kv(qkv, where % BLOCK_TOKENS, wing.rope_tables(HEAD_DIM, 500000.0, None, 2048), cache, 0, where)


GROUPS: dict[str, Callable[[NativeCpuWing], Iterator[Case]]] = {
    "linear": linear_cases,
    "head": head_cases,
    "pointwise": pointwise_cases,
    "attention": attention_cases,
}


def times_s(run: Callable[[], object], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Durations of at least five runs after one that warms up, for about `seconds`."""
    run()
    durations: list[float] = []
    while len(durations) < 5 or sum(durations) < seconds:
        start = clock()
        run()
        durations.append(clock() - start)
    return durations


def result(case: Case, threads: int, limits: Limits, durations: list[float]) -> dict[str, Any]:
    """One row of the table."""
    bounds = {
        "memory": limits.reading_s(case.num_bytes),
        "dot products": limits.multiplying_s(case.macs),
        "fp32": limits.adding_s(case.products),
    }
    bound, median = max(bounds, key=bounds.__getitem__), statistics.median(durations)
    return {
        "kernel": case.kernel,
        "tokens": case.tokens,
        "threads": threads,
        "ms": median * 1e3,
        "GB/s": case.num_bytes / median / 1e9,
        "GMAC/s": case.macs / median / 1e9 if case.macs else None,
        "bound": bound,
        "fraction": bounds[bound] / median,
        "best": bounds[bound] / min(durations),
        "limit GB/s": limits.gigabytes_per_s,
        "limit GMAC/s": limits.gigamacs_per_s,
    }


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Bars of the fractions; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.25 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['kernel']}, {row['tokens']} tokens, {row['threads']} threads ({row['bound']})" for row in rows]
    axes.barh(names, [row["best"] for row in rows], color="0.8", label="fastest run")
    axes.barh(names, [row["fraction"] for row in rows], label="median run")
    axes.invert_yaxis()
    axes.set_xlabel("fraction of the limit measured in the same run")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--only", choices=sorted(GROUPS), nargs="+", default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=0.3, help="for each case")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of time, with --threads 1")
    parser.add_argument("--library", type=Path, help="a library built by hand; the package's own otherwise")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.cpu_time and options.threads != [1]:
        parser.error("--cpu-time goes with --threads 1 only")
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(1)
    library = NativeLibrary(options.library) if options.library else None
    rows: list[dict[str, Any]] = []
    others = OtherLoad()
    with tempfile.TemporaryDirectory() as folder:
        program = build_limits(Path(folder))
        for threads in options.threads:
            wing = load(options.isa, threads, library)
            print(f"{wing.describe()['isa']}, {threads} threads")
            before = measure_limits(program, threads)
            for name in options.only:
                for case in GROUPS[name](wing):
                    durations = times_s(case.run, options.seconds, clock)
                    after = measure_limits(program, threads)
                    rows.append(result(case, threads, before.best(after), durations))
                    before = after
    about = {"others_cores": f"{others.cores():.2f}"}
    write(options.json, "Native CPU kernels, as fractions of the machine's limits", rows, about)
    if options.plot:
        plot(options.plot, rows)


if __name__ == "__main__":
    main()
