"""How fast is a whole step of the model on this CPU, beside its floor and beside llama.cpp?

    python -m benchmarks.cpu_model [--shape 2b4t small] [--threads 1 2] [--only prefill decode] [--prompts 64 512]
                                   [--rows 1 2 4 8 16 32] [--rounds 3] [--minutes M] [--peers q6_K f16]
                                   [--json FILE] [--plot FILE]

Ours in this process: model forward and the greedy choice. llama.cpp, built by benchmarks.peer_llama, in a process of
its own through its C interface: logits, and nothing chosen, as its own llama-bench does; TQ2_0 weights of the same
shape, one peer for each type of the head. `--peers` without a value measures ours alone.

In each round every case is run by all engines one after the other, in turn first. The limits (bytes read, int8
products) are measured before and after each run, and every figure is set against the higher of its own two; printed
are medians over the rounds. `--minutes` ends them earlier, after one for each shape and number of threads at least.
`floor` is what the step would take if its weights, head and cached keys and values, in the layout of that engine, came
at the read rate, or its ternary and head products at the peak, whichever is longer. A shape that fits into a cache is
set against the rate of a buffer of its size.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.limits import MEMORY_BYTES, Limits, build_limits, measure_limits
from benchmarks.model_steps import Case, OurSteps, Steps
from benchmarks.peer_gguf import HEADS
from benchmarks.peer_llama import Peer
from benchmarks.peer_steps import peer_steps
from benchmarks.report import OtherLoad, bars, panels_of, write
from benchmarks.shapes import CACHE, SHAPES, Cost, checkpoint, step_cost
from benchmarks.timebox import TimeBox

OURS = OurSteps.name


@dataclass(frozen=True, slots=True)
class Sample:
    """The median run of one case by one engine in one round, and the limits just then."""

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
    engines: Sequence[Steps],
    cases: Sequence[Case],
    threads: int,
    limits_on: Callable[[int], Limits],
    turns: Iterable[int],
    seconds: float,
) -> dict[tuple[Case, str], list[Sample]]:
    """The rounds of one shape on so many threads; `limits_on` measures the machine's limits on them."""
    found: dict[tuple[Case, str], list[Sample]] = {}
    for turn in turns:
        before = limits_on(threads)
        for case in cases:
            for place in range(len(engines)):
                engine = engines[(place + turn) % len(engines)]
                median = statistics.median(engine.times_s(case, threads, seconds))
                after = limits_on(threads)
                found.setdefault((case, engine.name), []).append(Sample(median, before.best(after)))
                before = after
    return found


def table_row(case: Case, threads: int, cost: Cost, samples: list[Sample], ours: list[Sample]) -> dict[str, Any]:
    """Medians of one engine, and how many times faster ours was in the same round."""
    rates = [case.count / sample.seconds for sample in samples]
    of_read = statistics.median(sample.limits.reading_s(cost.num_bytes) / sample.seconds for sample in samples)
    of_dots = statistics.median(sample.limits.multiplying_s(cost.macs) / sample.seconds for sample in samples)
    return {
        "case": str(case),
        "threads": threads,
        "rounds": len(samples),
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


def measure_shape(name: str, args: argparse.Namespace, program: Path, box: TimeBox) -> tuple[list[dict[str, Any]], str]:
    """Every case of one shape: the rows of the table, and our wing."""
    cases = [Case("prefill", count) for count in args.prompts if "prefill" in args.only]
    cases += [Case("decode", count) for count in args.rows if "decode" in args.only]
    sizes = {"rows": max(args.rows), "context": args.context, "prompt": max(args.prompts)}
    ours = OurSteps(checkpoint(name, args.peer_dir), isa=args.isa, head_dtype=args.head_dtype, **sizes)
    num_bytes = min(int(cost_of(name, Case("decode", 1), ours, args.context).num_bytes), MEMORY_BYTES)
    limits_on = partial(measure_limits, program, num_bytes=num_bytes)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        peers = [stack.enter_context(peer_steps(Peer(args.peer_dir), name, head, **sizes)) for head in args.peers]
        engines: list[Steps] = [ours, *peers]
        for threads in args.threads:
            found = measure(engines, cases, threads, limits_on, box.rounds(args.rounds), args.seconds)
            for case in cases:
                for engine in engines:
                    cost = cost_of(name, case, engine, args.context)
                    row = table_row(case, threads, cost, found[case, engine.name], found[case, OURS])
                    rows.append({"shape": name, "engine": engine.name, **row})
    return rows, ours.describe()


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """For each shape and number of threads the tokens a second of each case, engines side by side."""
    panels = list(dict.fromkeys((row["shape"], row["threads"]) for row in rows))
    figure, axes = panels_of(len(panels))
    for axis, (shape, threads) in zip(axes, panels, strict=True):
        shown = [row for row in rows if (row["shape"], row["threads"]) == (shape, threads)]
        values: dict[str, dict[str, float]] = {}
        for row in shown:
            values.setdefault(row["engine"], {})[row["case"]] = row["tok_s"]
        bars(axis, values, title=f"{shape}, {threads} threads", unit="tokens/s")
    figure.savefig(path)


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
    parser.add_argument("--minutes", type=float, help="for everything: fewer rounds where they take longer")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case, engine and round")
    parser.add_argument("--isa", default="auto", help="our instruction set")
    parser.add_argument("--head-dtype", help="our head's type; the wing's default otherwise")
    parser.add_argument("--peer-dir", type=Path, default=CACHE, help="checkpoints, GGUF files and the peer's build")
    parser.add_argument("--peers", choices=list(HEADS), nargs="*", default=list(HEADS), help="heads of llama.cpp")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.peers:
        Peer(args.peer_dir).require(Peer(args.peer_dir).steps)
    rows: list[dict[str, Any]] = []
    wing = ""
    others, box = OtherLoad(), TimeBox(args.minutes, len(args.shape) * len(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        program = build_limits(Path(folder))
        for name in args.shape:
            measured, wing = measure_shape(name, args, program, box)
            rows += measured
    question = f"Whole steps of the model, {args.context} tokens in each cache, medians of up to {args.rounds} rounds"
    about = {"ours": wing, "others_cores": f"{others.cores():.2f}"}
    write(args.json, question, rows, about | ({"peer": Peer(args.peer_dir).describe()} if args.peers else {}))
    if args.plot:
        plot(args.plot, rows)


if __name__ == "__main__":
    main()
