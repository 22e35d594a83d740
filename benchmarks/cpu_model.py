"""How fast is a whole step of the model on this CPU, beside its floor?

    python -m benchmarks.cpu_model [--shape 2b4t small] [--threads 1 2] [--only prefill decode] [--prompts 64 512]
                                   [--rows 1 2 4 8 16 32] [--rounds 3] [--json FILE] [--plot FILE]

Model forward and the greedy choice, without engine and server.

In each round every case is run beside a fresh measurement of the
limits (bytes read, int8 products), and every figure is set against those of its own round; printed are medians over
the rounds. `floor` is what the step would take if its weights, head and cached keys and values, in the layout of that
engine, came at the read rate, or its ternary and head products at the peak, whichever is longer. A shape that fits
into a cache is set against the rate of a buffer of its size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.limits import MEMORY_BYTES, Limits, build_limits, measure_limits
from benchmarks.model_steps import Case, OurSteps, Steps
from benchmarks.report import write
from benchmarks.shapes import CACHE, SHAPES, Cost, checkpoint, step_cost

OURS = OurSteps.name


@dataclass(frozen=True, slots=True)
class Sample:
    """The median run of one case by one engine in one round, and the limits of that round."""

    seconds: float
    limits: Limits


def cost_of(shape_name: str, case: Case, engine: Steps, context: int) -> Cost:
    """What the engine has to read and multiply for the case."""
    is_decode = case.kind == "decode"
    return step_cost(
        SHAPES[shape_name],
        tokens=case.count,
        keys=case.count * (context + 1) if is_decode else case.count,
        logits=case.count if is_decode else 1,
        weight_bits=engine.weight_bits,
        head_bits=engine.head_bits,
    )


def measure(
    engines: Sequence[Steps], cases: Sequence[Case], threads: int, program: Path, num_bytes: int, args: Any
) -> dict[tuple[Case, str], list[Sample]]:
    """All rounds of one shape on so many threads."""
    found: dict[tuple[Case, str], list[Sample]] = {}
    for turn in range(args.rounds):
        for case in cases:
            limits = measure_limits(program, threads, num_bytes)
            for place in range(len(engines)):
                engine = engines[(place + turn) % len(engines)]
                seconds = statistics.median(engine.times_s(case, threads, args.seconds))
                found.setdefault((case, engine.name), []).append(Sample(seconds, limits))
    return found


def table_row(case: Case, threads: int, cost: Cost, samples: list[Sample], ours: list[Sample]) -> dict[str, Any]:
    """Medians of one engine, and how many times faster ours was in the same round."""
    rates = [case.count / sample.seconds for sample in samples]
    of_read = statistics.median(sample.limits.reading_s(cost.num_bytes) / sample.seconds for sample in samples)
    of_dots = statistics.median(sample.limits.multiplying_s(cost.macs) / sample.seconds for sample in samples)
    return {
        "case": str(case),
        "threads": threads,
        "tok_s": statistics.median(rates),
        "spread": max(rates) / min(rates),
        "ms": 1e3 * statistics.median(sample.seconds for sample in samples),
        "of_floor": max(of_read, of_dots),
        "of_read": of_read,
        "of_dots": of_dots,
        "GB/s": statistics.median(sample.limits.gigabytes_per_s for sample in samples),
        "GMAC/s": statistics.median(sample.limits.gigamacs_per_s for sample in samples),
        "ours_is_x": statistics.median(theirs.seconds / own.seconds for theirs, own in zip(samples, ours, strict=True)),
    }


def measure_shape(name: str, args: argparse.Namespace, program: Path) -> list[dict[str, Any]]:
    """Every case of one shape: the rows of the table."""
    cases = [Case("prefill", count) for count in args.prompts if "prefill" in args.only]
    cases += [Case("decode", count) for count in args.rows if "decode" in args.only]
    sizes = {"rows": max(args.rows), "context": args.context, "prompt": max(args.prompts)}
    ours = OurSteps(checkpoint(name, args.peer_dir), isa=args.isa, head_dtype=args.head_dtype, **sizes)
    print(f"{name}: {ours.describe()}")
    rows: list[dict[str, Any]] = []
    engines: list[Steps] = [ours]
    num_bytes = min(int(cost_of(name, Case("decode", 1), ours, args.context).num_bytes), MEMORY_BYTES)
    for threads in args.threads:
        found = measure(engines, cases, threads, program, num_bytes, args)
        for case in cases:
            for engine in engines:
                cost = cost_of(name, case, engine, args.context)
                row = table_row(case, threads, cost, found[case, engine.name], found[case, OURS])
                rows.append({"shape": name, "engine": engine.name, **row})
    return rows


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), nargs="+", default=["2b4t", "small"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", choices=["prefill", "decode"], nargs="+", default=["prefill", "decode"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512], help="tokens of a prompt")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="rows of a decode step")
    parser.add_argument("--context", type=int, default=128, help="tokens in each row's cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case, engine and round")
    parser.add_argument("--isa", default="auto", help="our instruction set")
    parser.add_argument("--head-dtype", help="our head's type; the wing's default otherwise")
    parser.add_argument("--peer-dir", type=Path, default=CACHE, help="checkpoints, GGUF files, the peer's build")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        program = build_limits(Path(folder))
        for name in args.shape:
            rows += measure_shape(name, args, program)
    write(args.json, f"Whole steps of the model, {args.context} tokens in each cache, medians of {args.rounds}", rows)


if __name__ == "__main__":
    main()
