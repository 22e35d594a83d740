"""How near to the machine's limits is every native kernel?

    python -m benchmarks.cpu_kernels [--threads 1 2] [--isa auto] [--only linear] [--seconds 1] [--cpu-time]
                                     [--library FILE] [--json FILE] [--plot FILE]

Shapes of 2B-4T (hidden 2560, 20/5 heads of 128, ffn 6912); weights of eight layers in turn, so that they come from
memory. The limits (memory read, int8 dot products) are measured by cpu_limits.cpp, built for this machine, before and
after, in the same run and in processor time. `--cpu-time` times the kernels so too, one thread only: for a machine
that is busy with other things. `bound` is what would limit a perfect kernel: its bytes over the read bandwidth or its
products over the dot peak, whichever takes longer. `fraction` is that time over the median time, `best` over the
fastest. Pointwise kernels and attention in fp32 are set against the bytes they move.
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
from typing import Any

import torch

from benchmarks.limits import Limits, build_limits, measure_limits
from benchmarks.report import write
from cpu_fallback.native_handles import Quantized, Weights
from cpu_fallback.native_library import NativeLibrary
from cpu_fallback.native_loading import load
from cpu_fallback.native_wing import NativeCpuWing

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2560, 6912, 20, 5, 128, 32064
SHAPES = ((3840, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN))  # q|k|v, o, gate|up, down
LAYERS = 8
BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size; `macs` counts int8 products, 0 where there are none."""

    kernel: str
    tokens: int
    num_bytes: int
    macs: int
    run: Callable[[], object]


def random_planes(rows: int, width: int) -> torch.Tensor:
    """Checkpoint bytes without code 3."""
    planes = torch.randint(0, 256, (rows // 4, width), dtype=torch.uint8)
    return planes & ~(planes & planes >> 1 & 0x55)


def all_linears(wing: NativeCpuWing, layers: list[list[Weights]], inputs: dict[int, Quantized]) -> None:
    """Every linear of every layer once."""
    for layer in layers:
        for weights in layer:
            wing.ternary_linear(inputs[weights.native.width], weights)


def linear_cases(wing: NativeCpuWing) -> Iterator[Case]:
    layers = [[wing.pack([(random_planes(n, k), torch.ones(n))]) for n, k in SHAPES] for _ in range(LAYERS)]
    weights = LAYERS * sum(n * k for n, k in SHAPES)
    for tokens in (1, 2, 4, 8, 16, 32, 128, 512):
        inputs = {k: wing.quantize(torch.randn(tokens, k)) for _, k in SHAPES}

        yield Case("linear", tokens, weights // 4, weights * tokens, partial(all_linears, wing, layers, inputs))


def head_cases(wing: NativeCpuWing) -> Iterator[Case]:
    table = wing.pack_table(torch.randn(VOCAB, HIDDEN), embedding=False, head_dtype="int8")
    gain = torch.ones(HIDDEN)
    for tokens in (1, 8, 16):
        x, none = torch.randn(tokens, HIDDEN), torch.zeros(tokens, 0, dtype=torch.int64)
        size = VOCAB * HIDDEN
        yield Case("head_topk", tokens, size, size * tokens, partial(wing.head_topk, x, gain, 1e-5, table, 40, none))


def pointwise_cases(wing: NativeCpuWing) -> Iterator[Case]:
    gain, ffn_gain = torch.ones(HIDDEN), torch.ones(FFN)
    cache = wing.new_cache(1, 64, BLOCK_TOKENS, KV_HEADS, HEAD_DIM, "bf16")
    tables = wing.rope_tables(HEAD_DIM, 500000.0, None, 2048)
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    for tokens in (1, 512):
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
    for kernel, rows, count, length in (
        ("attention, 200 keys", 1, 1, 200),
        ("attention, 200 keys", 8, 1, 200),
        ("attention, 2048 keys", 1, 1, 2048),
        ("attention, prefill", 1, 512, 512),
    ):
        blocks = -(-length // BLOCK_TOKENS)
        cache = wing.new_cache(1, rows * blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM, "bf16")
        q = torch.randn(rows * count, HEADS, HEAD_DIM)
        tables = torch.arange(rows * blocks, dtype=torch.int32).view(rows, blocks)
        lengths = torch.full((rows,), length, dtype=torch.int32)
        starts = torch.arange(rows + 1, dtype=torch.int32) * count
        yield Case(
            kernel,
            rows * count,
            rows * length * KV_HEADS * HEAD_DIM * 4,
            0,
            partial(wing.paged_attention, q, cache, 0, tables, lengths, starts),
        )


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
    reading, multiplying = case.num_bytes / limits.gigabytes_per_s / 1e9, case.macs / limits.gigamacs_per_s / 1e9
    ideal, median = max(reading, multiplying), statistics.median(durations)
    return {
        "kernel": case.kernel,
        "tokens": case.tokens,
        "threads": threads,
        "ms": median * 1e3,
        "GB/s": case.num_bytes / median / 1e9,
        "GMAC/s": case.macs / median / 1e9 if case.macs else None,
        "bound": "memory" if reading >= multiplying else "dot products",
        "fraction": ideal / median,
        "best": ideal / min(durations),
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
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
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
    with tempfile.TemporaryDirectory() as folder:
        program = build_limits(Path(folder))
        for threads in options.threads:
            wing = load(options.isa, threads, library)
            before = measure_limits(program, threads)
            cases = [case for name in options.only for case in GROUPS[name](wing)]
            timed = [(case, times_s(case.run, options.seconds, clock)) for case in cases]
            after = measure_limits(program, threads)
            limits = Limits(
                max(before.gigabytes_per_s, after.gigabytes_per_s),
                max(before.gigamacs_per_s, after.gigamacs_per_s),
                before.instruction,
            )
            print(
                f"{wing.describe()['isa']}, {threads} threads: read {before.gigabytes_per_s:.1f} GB/s before, "
                f"{after.gigabytes_per_s:.1f} after; {limits.instruction} {before.gigamacs_per_s:.0f} GMAC/s before, "
                f"{after.gigamacs_per_s:.0f} after"
            )
            rows += [result(case, threads, limits, durations) for case, durations in timed]
    write(options.json, "Native CPU kernels, as fractions of the machine's limits", rows)
    if options.plot:
        plot(options.plot, rows)


if __name__ == "__main__":
    main()
