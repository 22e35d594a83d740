"""What does a server cost beside its model: how much of a step, and of the time to the first token?

    python -m benchmarks.overhead [--model FOLDER | --shape 2b4t] [--clients 16] [--repeat 9] [--json FILE]

A real server runs in this process, its clients in another. `outside` is the share of a step's time, from launch to
launch with every client's row decoding, that is not spent in the model (its layers, the head, and what the wing draws
by itself): batches, samplers, scheduling, text, delivery, and waiting for the interpreter's lock, which HTTP shares.
The time to the first token is taken twice for one prompt at a time: of the engine alone, before the server runs, and by
a client of the idle server. Everything is a median.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import write
from benchmarks.serving import DEMO, vocabulary
from benchmarks.shapes import CACHE, SHAPES, checkpoint
from service.api.app import create_app
from service.compose import load
from service.config import Settings, load_settings
from service.engine.async_engine import AsyncEngine, EngineOptions
from service.engine.engine import Engine
from service.engine.plan import StepPlan
from service.engine.request import Limits, Request, SamplingParams
from service.engine.runner import Completed, ModelRunner, decodes_only
from service.engine.thread import Loaded
from service.server import listen, make_server, url_of


@dataclass(frozen=True, slots=True)
class Step:
    """When it was launched (s), how long the model took (s), its rows if they only decode (else 0), its rounds."""

    launched: float
    model: float
    rows: int
    rounds: int


class Watched:
    """Keeps a Step of each launch of a runner."""

    def __init__(self, runner: ModelRunner) -> None:
        self.steps: list[Step] = []
        self._in_model = 0.0
        self._launch = runner.launch
        for name in ("forward", "draw", "decode", "logits", "top_logits"):
            function = getattr(runner.model, name)
            if function is not None:
                setattr(runner.model, name, self._timed(function))
        setattr(runner, "launch", self.launch)  # noqa: B010 - a method cannot be assigned

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self._in_model += time.perf_counter() - began

        return timed

    def launch(self, plan: StepPlan) -> Completed:
        began, self._in_model = time.perf_counter(), 0.0
        try:
            return self._launch(plan)
        finally:
            num_rows = len(plan.rows) if decodes_only(plan) else 0
            self.steps.append(Step(began, self._in_model, num_rows, plan.rounds))

    def outside(self, rows: int) -> list[float]:
        """The share of each step's time that is not the model's, where this and the next one decode so many rows."""
        return [
            1 - step.model / (later.launched - step.launched)
            for step, later in zip(self.steps, self.steps[1:], strict=False)
            if step.rows == later.rows == rows
        ]


def first_token_s(engine: Engine, prompt: list[int]) -> float:
    """From a request's arrival at an idle engine to its first token."""
    limits = Limits(n_ctx=len(prompt) + 8, n_batch=len(prompt), max_tokens=1)
    began = time.perf_counter()
    engine.add(Request("first", tuple(prompt), SamplingParams(seed=0), limits))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - began


@contextmanager
def serving(settings: Settings, loaded: Loaded) -> Iterator[str]:
    """The server of this process; gives its URL."""
    engine = AsyncEngine(EngineOptions(max_queue=settings.max_queue))
    sock = listen("127.0.0.1", 0)
    server = make_server(create_app(engine, settings), engine, settings, sock)
    engine.start(lambda: loaded)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), name="server")
    thread.start()
    try:
        yield url_of(sock)
    finally:
        server.should_exit = True
        thread.join()
        engine.shutdown()


def clients(url: str, model: Path, count: int, generate: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of benchmarks.serving for so many clients of this server."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.serving", "--url", url, "--model", model, "--json", result]
        sizes = {"--clients": count, "--prompt": args.prompt, "--generate": generate, "--repeat": args.repeat}
        words = [*command, "--shared-clients", *(word for pair in sizes.items() for word in pair)]
        subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
        row: dict[str, Any] = json.loads(result.read_text())["rows"][0]
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape instead")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--generate", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sys.setswitchinterval(1e-4)  # as in service/cli.py
    model = checkpoint(args.shape, CACHE) if args.shape else args.model
    flags = {"model": str(model), "n_threads": args.threads, "max_running": args.clients}
    settings = load_settings(flags).settings
    loaded = load(settings)
    vocab, _ = vocabulary(model)
    prompts = [[(turn + 7 * place) % vocab for place in range(args.prompt)] for turn in range(args.repeat)]
    engine_s = statistics.median(first_token_s(loaded.engine, prompt) for prompt in prompts)
    assert isinstance(loaded.engine.runner, ModelRunner)
    watched = Watched(loaded.engine.runner)
    with serving(settings, loaded) as url:
        server_s = clients(url, model, 1, 16, args)["first_s"]
        many = clients(url, model, args.clients, args.generate, args)
    shares = watched.outside(args.clients)
    row = {
        "clients": args.clients,
        "steps": len(shares),
        "rounds": statistics.median(step.rounds for step in watched.steps if step.rows == args.clients),
        "outside": statistics.median(shares),
        "gap_ms": many["gap_ms"],
        "engine_first_ms": 1e3 * engine_s,
        "server_first_ms": 1e3 * server_s,
        "beyond_ms": 1e3 * (server_s - engine_s),
    }
    write(args.json, f"What does a server cost beside its model ({model.name}, {args.threads} threads)?", [row])


if __name__ == "__main__":
    main()
