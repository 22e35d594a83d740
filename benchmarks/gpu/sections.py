"""The sections of the suite: each answers one question in a process of its own and has its share of ten minutes.

A kernel that fails takes its process's device context with it, and one that hangs never returns; so sections do not
share a process, what a section measured before it ended is kept, and the next one starts with a clean device.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import baselines, checks, kernels, logits, products, profile, server, steps
from benchmarks.gpu.bench import Figure, Options

ROOT = Path(__file__).parents[2]
MAX_SHOWN_ERRORS = 4000
"""Characters of what a section that failed wrote last."""


@dataclass(frozen=True, slots=True)
class Section:
    question: str
    limit_s: float
    measure: Callable[[Options], Iterator[Figure]]


# In order of what must be known first: right before fast, the whole before its parts. 590 s in all at the limits.
SECTIONS = {
    "checks": Section("Is it right on this device?", 90, checks.checks),
    "limits": Section("What the card reaches by torch's own kernels", 15, checks.limits),
    "steps": Section("Whole decode steps, and one prompt in one step", 90, steps.steps),
    "server": Section("The server over loopback", 90, server.server),
    "torch": Section(
        "Baseline: dense bf16 of the same shape in plain torch, one graph a step", 35, baselines.torch_graphs
    ),
    "logits": Section("Logits against float64, beside those of transformers", 50, logits.logits),
    "transformers": Section("Baseline: dense bf16 of the same shape in transformers", 40, baselines.transformers_eager),
    "variants": Section("Decode steps with another head, and both ways of launching", 50, steps.variants),
    "linears": Section("Ternary linears, all layers' weights in turn", 45, kernels.linears),
    "attention": Section("Paged decode attention, all layers' caches in turn", 18, kernels.attention),
    "heads": Section("Final norm, head and best tokens, launched one by one", 20, kernels.heads),
    "launches": Section("One small kernel in a captured chain", 10, kernels.launches),
    "products": Section("Do products of 16 and of 64 rows have the same bits?", 10, products.products),
    "profile": Section("Where the time of a step goes, kernel by kernel", 27, profile.kernels_of_steps),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a section. `failure` is empty where it ended by itself; what was measured before stays."""

    section: str
    seconds: float
    rows: list[dict[str, Any]]
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure and all(row["ok"] is not False for row in self.rows)


Execute = Callable[[str, Options], Outcome]


def in_this_process(name: str, options: Options, sections: Mapping[str, Section] = SECTIONS) -> Outcome:
    """Without the isolation and the time limit; for the interpreter, whose replacements live in one process."""
    began = time.monotonic()
    rows = [figure.row() for figure in sections[name].measure(options)]
    return Outcome(name, time.monotonic() - began, rows)


def in_its_own_process(
    name: str, options: Options, environment: Mapping[str, str], limit_s: float, command: tuple[str, ...] = ()
) -> Outcome:
    """The section as a child that writes a line of JSON for each figure; killed at its limit."""
    began = time.monotonic()
    child = command or (sys.executable, "-m", "benchmarks.gpu.sections", name, written(options))
    process = subprocess.Popen(
        child,
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a server it started ends with it
    )
    try:
        said, errors = process.communicate(timeout=limit_s)
        failure = "" if process.returncode == 0 else last_line(errors) or f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, errors = process.communicate()
        failure = f"stopped at its limit of {limit_s:.0f} s"
    if failure:
        print(errors[-MAX_SHOWN_ERRORS:], file=sys.stderr)
    rows = [json.loads(line) for line in said.splitlines() if line.startswith('{"case"')]
    return Outcome(name, time.monotonic() - began, rows, failure)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def written(options: Options) -> str:
    return json.dumps(dataclasses.asdict(options) | {"folder": str(options.folder)})


def read(text: str) -> Options:
    values = json.loads(text)
    tuples = {name: tuple(values[name]) for name in ("batches", "streams")}
    return Options(**{**values, **tuples, "folder": Path(values["folder"])})


def main(name: str, options: str) -> None:
    for figure in SECTIONS[name].measure(read(options)):
        print(json.dumps(figure.row()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
