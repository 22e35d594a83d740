"""Is the GPU wing right on this device, and how near is it to the card's limits? One call, under ten minutes.

    python -m benchmarks.gpu_suite [--out FOLDER] [--wheels FOLDER] [--sections checks steps ...]
                                   [--preset 2b4t] [--batches 1 8 32 128 256] [--context 1024] [--prompt 2048]

Fetches nothing: a random checkpoint in the model's true layout is written on the spot, and packages that are missing
come from the folder --wheels. Correctness comes first. Every section runs in a process of its own with its own time
limit (`benchmarks/gpu/sections.py`), so one that fails or hangs costs its own figures only; results are written after
each: one table, one JSON and one drawing in --out, named after the card and the day. A figure is set against what the
card reached in the same run by torch's own kernels. The exit status is 1 where something was wrong or did not end.

The wheels are fetched beforehand on a machine that has a network, with the GPU machine's Python:
    pip download --dest FOLDER --only-binary :all: --python-version 3.12 fastapi uvicorn sse-starlette typer ...
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import wheels
from benchmarks.gpu.bench import Options
from benchmarks.gpu.plot import draw, lines
from benchmarks.gpu.sections import SECTIONS, Execute, Outcome, in_its_own_process
from benchmarks.report import RESULTS, machine, write
from tools.make_checkpoint import write_checkpoint

LIMIT_S = 590.0


def run(names: Sequence[str], options: Options, execute: Execute, out: Path | None, what: str) -> bool:
    """Run the sections in turn and keep what they say after each; False where one was wrong or did not end."""
    device = torch.cuda.get_device_name() if options.on_gpu else "Triton's interpreter (times mean nothing)"
    about = machine() | {"device": device, "cuda": str(torch.version.cuda), "model": what}
    outcomes: list[Outcome] = []
    for name in names:
        outcome = execute(name, options)
        outcomes.append(outcome)
        show(outcome)
        if out is not None:
            keep(out, outcomes, about, options)
    print(f"\n{sum(outcome.seconds for outcome in outcomes):.0f} s in all")
    for outcome in outcomes:
        if not outcome.ok:
            wrong = [row["case"] for row in outcome.rows if row["ok"] is False]
            print(f"FAILED {outcome.section}: {'; '.join([*wrong, outcome.failure] if outcome.failure else wrong)}")
    return all(outcome.ok for outcome in outcomes)


def show(outcome: Outcome) -> None:
    shown = [{key: value for key, value in row.items() if value is not None} for row in outcome.rows]
    ending = f": {outcome.failure}" if outcome.failure else ""
    write(None, f"{SECTIONS[outcome.section].question} ({outcome.seconds:.0f} s{ending})", shown)


def keep(out: Path, outcomes: Sequence[Outcome], about: dict[str, str], options: Options) -> None:
    """One JSON, one table in Markdown and one drawing, rewritten after each section."""
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "question": f"GPU suite: {about['model']} on {about['device']}, {about['date']}",
        "machine": about,
        "context": options.context,
        "sections": {one.section: {"seconds": one.seconds, "failure": one.failure} for one in outcomes},
        "rows": [{"section": one.section, **row} for one in outcomes for row in one.rows],
    }
    card = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    name = out / f"gpu-{about['model']}-{about['date']}-{card}"
    name.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    name.with_suffix(".md").write_text(table(result))
    series = lines(result)
    if series:
        name.with_suffix(".svg").write_text(draw(result["question"], series))


def table(result: dict[str, Any]) -> str:
    """Every figure in one Markdown table."""
    names = ("section", "case", "value", "unit", "fraction", "least", "aim", "ok")
    written = [[cell(row[name]) for name in names] for row in result["rows"]]
    body = [f"| {' | '.join(row)} |" for row in [list(names), ["---"] * len(names), *written]]
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([f"# {result['question']}", "", about, "", *body, ""])


def cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2b4t")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what is missing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU here: the suite measures one (tests run it at toy size in Triton's interpreter)", file=sys.stderr)
        return 2
    until = time.monotonic() + args.limit
    with tempfile.TemporaryDirectory() as folder:
        environment = prepared(args.wheels, Path(folder) / "packages")
        checkpoint = write_checkpoint(Path(folder) / "model", "packed", args.preset)
        options = Options(
            checkpoint, "cuda", tuple(args.batches), args.context, args.prompt, args.repeat, tuple(args.streams)
        )
        execute = partial(within, until=until, environment=environment)
        return 0 if run(args.sections, options, execute, args.out, args.preset) else 1


def within(name: str, options: Options, until: float, environment: dict[str, str]) -> Outcome:
    """The section in a process of its own, for as long as it may take and there is time left."""
    left = until - time.monotonic()
    if left < 1:
        return Outcome(name, 0.0, [], "no time left")
    return in_its_own_process(name, options, environment, min(SECTIONS[name].limit_s, left))


def prepared(folder: Path | None, target: Path) -> dict[str, str]:
    """Install what is missing, as far as it can be had; a section that lacks something says so itself."""
    names = wheels.missing()
    if folder is not None and names:
        failure = wheels.install(names, folder, target)
        print(f"installed {', '.join(names)} from {folder}" if not failure else f"not installed: {failure}")
    return wheels.environment(target)


if __name__ == "__main__":
    sys.exit(main())
