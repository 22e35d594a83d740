"""Does the engine keep its pace while Python code runs beside it?

    python -m benchmarks.gil [--model FOLDER] [--rows 1 8] [--max-rounds N] [--switch-interval 1e-4] [--json FILE]

The engine thread shares the interpreter with HTTP. Here it decodes ``--rows`` requests, and another thread either
sleeps (alone) or computes in pure Python without a pause, the worst neighbour there is (thread). A third kind of window
has the same computation in another process: what that costs is the machine's lack of cores, not the interpreter's lock.
The kinds take turns, so a drift of the machine hits them alike. Printed are the medians of the rounds a second (a round
is one token for each row; a step of a small model is several), and the medians and the extremes of thread / alone and
thread / process. With --max-rounds 1 every step is one round.
Without ``--model``, a random checkpoint of about the demo model's size is served.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import write
from bitnet_model.checkpoint import load_model
from bitnet_model.config import ModelConfig
from bitnet_model.ops import load_ops
from service.engine.blocks import BLOCK_TOKENS, BlockPool
from service.engine.engine import Engine
from service.engine.request import Limits, Request, SamplingParams
from service.engine.runner import ModelRunner
from service.engine.scheduler import MAX_ROUNDS, SchedulerLimits
from tools.make_checkpoint import write_checkpoint

N_CTX = 512


class NoText:
    """Nothing ends a generation but its limit."""

    eos_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return b"x" if token_id >= 0 else b""


class Stepper:
    """An engine that decodes the same number of requests all the time, in a thread of its own."""

    def __init__(self, engine: Engine, num_rows: int) -> None:
        self.engine = engine
        self.num_rows = num_rows
        self._num_added = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine")

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            while self.engine.stats()["running"] + self.engine.stats()["waiting"] < self.num_rows:
                self._num_added += 1
                params, limits = SamplingParams(seed=self._num_added), Limits(n_ctx=N_CTX, n_batch=N_CTX)
                self.engine.add(Request(str(self._num_added), (1, 2, 3), params, limits))
            self.engine.step()

    @property
    def num_rounds(self) -> float:
        return self.engine.stats()["generated_tokens"] / self.num_rows


def compute(duration_s: float) -> None:
    """Keep the interpreter busy."""
    end, number = time.perf_counter() + duration_s, 0
    while time.perf_counter() < end:
        for _ in range(1000):
            number = (number * 31 + 7) % 1_000_003


def compute_elsewhere(duration_s: float) -> None:
    """The same in another process."""
    command = [sys.executable, "-c", "number = 0\nwhile True: number = (number * 31 + 7) % 1_000_003"]
    with subprocess.Popen(command) as process:
        time.sleep(duration_s)
        process.kill()


def measure(stepper: Stepper, beside: Callable[[float], None], window_s: float) -> float:
    """Rounds a second while `beside` runs in this thread."""
    rounds, started_s = stepper.num_rounds, time.perf_counter()
    beside(window_s)
    return (stepper.num_rounds - rounds) / (time.perf_counter() - started_s)


def compare(engine: Engine, num_rows: int, args: argparse.Namespace) -> dict[str, Any]:
    stepper = Stepper(engine, num_rows)
    neighbours = {"alone": time.sleep, "process": compute_elsewhere, "thread": compute}
    rates: dict[str, list[float]] = {name: [] for name in neighbours}
    with stepper.running():
        time.sleep(args.window)
        for _ in range(args.repeat):
            for name, beside in neighbours.items():
                rates[name].append(measure(stepper, beside, args.window))
    row: dict[str, Any] = {"rows": num_rows, "max_rounds": engine.limits.max_rounds, "threads": args.threads}
    row["switch_interval_s"] = sys.getswitchinterval()
    row |= {f"{name}_rounds_s": statistics.median(values) for name, values in rates.items()}
    for name in ("alone", "process"):
        ratios = [busy / quiet for quiet, busy in zip(rates[name], rates["thread"], strict=True)]
        row[f"thread/{name}"] = statistics.median(ratios)
        row[f"thread/{name}_range"] = f"{min(ratios):.2f}..{max(ratios):.2f}"
    return row


def new_engine(folder: Path, threads: int, num_rows: int, max_rounds: int) -> Engine:
    ops = load_ops("cpu", threads=threads)
    model = load_model(folder, ops, head_dtype="int8")
    pool = BlockPool(num_rows * N_CTX // BLOCK_TOKENS)
    runner = ModelRunner(model, ops, num_blocks=pool.num_blocks, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")
    assert ModelConfig.from_folder(folder).max_position_embeddings >= N_CTX
    return Engine(runner, NoText(), pool, SchedulerLimits(num_rows, N_CTX, threads, max_rounds=max_rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-rounds", type=int, default=MAX_ROUNDS, help="default: as in service/compose.py")
    parser.add_argument("--switch-interval", type=float, default=1e-4, help="as in service/cli.py")
    parser.add_argument("--window", type=float, default=2.0, help="seconds of one measurement")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sys.setswitchinterval(args.switch_interval)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or write_checkpoint(Path(scratch) / "random", "packed", "small")
        engines = [(rows, new_engine(folder, args.threads, rows, args.max_rounds)) for rows in args.rows]
        rows = [compare(engine, num_rows, args) for num_rows, engine in engines]
    write(args.json, "Does the engine keep its pace beside busy Python?", rows)


if __name__ == "__main__":
    main()
