"""Time the tiles of the GPU wing on the card that is here and write the winners to the tuning table.

    python -m tools.tune_gpu [--preset 2b4t] [--kinds linear gated attention launch] [--limit 540] [--table FILE]

Run by hand, once per card; the server only reads the table (triton_kernels/tuning.json). Rows that are there are kept,
so a call that ran out of its time limit is continued by the next one; --again measures them anew. Weights are those of
many layers in turn, so that they come from memory and not from the L2 cache. Each row says on standard output what the
heuristic's tile took and what the winner's did.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triton_kernels
from benchmarks.gpu.bench import BLOCK_TOKENS, Options, decode_batch, seconds
from bitnet_model.checkpoint import load_model
from tools.make_checkpoint import PRESETS, write_checkpoint
from tools.tuning_candidates import Tile, Winner, attention_candidates, choose, gated_candidates, linear_candidates
from triton_kernels.attention import paged_attention, query_blocks
from triton_kernels.cache import new_cache
from triton_kernels.device import Device, open_device
from triton_kernels.gated import gated_linear
from triton_kernels.graphs import CudaCapture
from triton_kernels.linear import ternary_linear
from triton_kernels.pack import Weights, padded
from triton_kernels.pointwise import gate_quantize, quantize
from triton_kernels.tuning import (
    LAUNCH_KEY,
    PREFILL_BUCKETS,
    TABLE,
    attention_key,
    attention_tile,
    gated_key,
    linear_key,
    linear_tile,
    read_table,
    regime,
)

BUCKETS = (1, 2, 4, 8, 16, 32, 64, *PREFILL_BUCKETS)
L2_BYTES = 400e6
"""Weights in turn: several times the L2 cache of any card."""
KINDS = ("linear", "gated", "attention", "launch")
Rows = dict[str, dict[str, int]]


@dataclass(slots=True)
class Tuner:
    """What is measured for one card. `time_of` runs work a few times and gives the seconds of one."""

    device: Device
    preset: str
    time_of: Callable[[Callable[[], Tensor]], float]
    until: float
    again: bool
    buckets: tuple[int, ...] = BUCKETS
    rows: Rows = field(default_factory=dict)

    def wants(self, key: str) -> bool:
        return (self.again or key not in self.rows) and time.monotonic() < self.until

    def take(self, key: str, winner: Winner | None) -> None:
        if winner is None:
            print(f"{key}: nothing runs here")
            return
        self.rows[key] = dataclasses.asdict(winner.tile)
        print(f"{key}: {winner.heuristic_seconds * 1e6:.2f} us, now {winner.seconds * 1e6:.2f} us with {winner.tile}")

    def seconds(self, work: Callable[[], Tensor]) -> float | None:
        """None where the work does not compile or fit: another tile's turn."""
        try:
            return self.time_of(work)
        except Exception as error:  # Triton raises many kinds, and each means that this tile is not for this card
            print(f"  passed over: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            return None

    def with_row(self, key: str, tile: Tile) -> Device:
        """The device as it would be with this row in its table."""
        return dataclasses.replace(self.device, tuned={key: dataclasses.asdict(tile)})


def shapes(preset: str) -> dict[str, tuple[int, int]]:
    """(N, K) of each fused linear."""
    shape = PRESETS[preset]
    width = shape.heads * shape.head_size
    kv_width = shape.kv_heads * shape.head_size
    return {
        "qkv": (width + 2 * kv_width, shape.hidden),
        "o": (shape.hidden, width),
        "gate_up": (2 * shape.inter, shape.hidden),
        "down": (shape.hidden, shape.inter),
    }


def weights(n: int, k: int, device: torch.device) -> list[Weights]:
    """As many matrices as do not fit the L2 cache, with random planes."""
    count = max(1, int(L2_BYTES // (n * k // 4))) if device.type == "cuda" else 1
    rows = torch.arange(n // 4, dtype=torch.int32, device=device)
    return [
        Weights(
            torch.randint(-128, 128, (n // 4, padded(k)), dtype=torch.int8, device=device),
            torch.ones(4, n // 4, device=device),
            rows,
            torch.full_like(rows, n // 4),
            k,
        )
        for _ in range(count)
    ]


def tune_linears(tuner: Tuner) -> Iterator[str]:
    """Each shape at each number of tokens; yields a key when its row is settled."""
    for bucket in tuner.buckets:
        for n, k in dict.fromkeys(shapes(tuner.preset).values()):
            form = regime(bucket, tuner.device.dp4a)
            key = linear_key(form, bucket, n // 4, padded(k))
            if not tuner.wants(key):
                continue
            held, q = weights(n, k, tuner.device.torch_device), codes(bucket, k, tuner.device)
            scratch = tuner.device.zeros(64 * n, dtype=torch.int32)

            def taken(tile: Tile, key: str = key, held: Any = held, q: Any = q, scratch: Any = scratch) -> float | None:
                device = tuner.with_row(key, tile)
                return tuner.seconds(lambda: last(ternary_linear(q, w, None, device, scratch) for w in held))

            heuristic = linear_tile(bucket, n // 4, padded(k), tuner.device)
            tuner.take(key, choose(heuristic, linear_candidates(form, bucket, padded(k)), taken))
            yield key


def tune_gated(tuner: Tuner) -> Iterator[str]:
    """Gate and up in one, where that beats the linear and the gate after it; no row says that it does not."""
    n, k = shapes(tuner.preset)["gate_up"]
    gain = torch.ones(n // 2, device=tuner.device.torch_device)
    for bucket in tuner.buckets[2:]:
        form = regime(bucket, tuner.device.dp4a)
        key = gated_key(bucket, n // 4, padded(k))
        if not tuner.wants(key):
            continue
        held, q, device = weights(n, k, tuner.device.torch_device), codes(bucket, k, tuner.device), tuner.device

        def apart(held: Any = held, q: Any = q, device: Device = device) -> Tensor:
            products = (ternary_linear(q, w, None, device) for w in held)
            return last(gate_quantize(x, gain, 1e-5, "relu2", device).codes for x in products)

        def together(tile: Any, held: Any = held, q: Any = q, device: Device = device) -> float | None:
            def all_of() -> Tensor:
                products = (gated_linear(q, w, "relu2", tile, device) for w in held)
                return last(quantize(x, gain, 1e-5, device).codes for x in products)

            return tuner.seconds(all_of)

        now = tuner.seconds(apart)
        best = min(
            ((taken, tile) for tile in gated_candidates(form, bucket, padded(k)) if (taken := together(tile))),
            default=None,
            key=lambda pair: pair[0],
        )
        if now is not None and best is not None and best[0] < 0.98 * now:
            tuner.take(key, Winner(best[1], best[0], now))
        yield key


def tune_attention(tuner: Tuner) -> Iterator[str]:
    """One shape for all: the sum of decode at 1, 32 and 256 rows of 1k tokens and a prompt of 2048."""
    shape = PRESETS[tuner.preset]
    group, size, device = shape.heads // shape.kv_heads, shape.head_size, tuner.device
    key = attention_key(size, group)
    if not tuner.wants(key):
        return
    works = [(1, 1, 1024), (32, 1, 1024), (256, 1, 1024), (1, 2048, 2048)]
    if device.torch_device.type != "cuda":
        works = [(1, 2, 9)]

    def taken(tile: Tile) -> float | None:
        trial = tuner.with_row(key, tile)
        times = [tuner.seconds(attention_work(trial, shape, *work)) for work in works]
        return None if None in times else sum(time_s for time_s in times if time_s is not None)

    heuristic = attention_tile(size, group, device)
    tuner.take(key, choose(heuristic, attention_candidates(heuristic), taken))
    yield key


def attention_work(device: Device, shape: Any, num_rows: int, count: int, length: int) -> Callable[[], Tensor]:
    """Rows of `count` queries at the end of `length` keys."""
    blocks = -(-length // BLOCK_TOKENS)
    there = device.torch_device
    cache = new_cache(1, num_rows * blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_size, "bf16", device)
    tables = torch.arange(num_rows * blocks, dtype=torch.int32, device=there).view(num_rows, blocks)
    lengths = torch.full((num_rows,), length, dtype=torch.int32, device=there)
    starts = torch.arange(num_rows + 1, dtype=torch.int32) * count
    cut = query_blocks(starts.tolist(), shape.heads, shape.kv_heads, shape.head_size, device)
    q = torch.randn(num_rows * count, shape.heads, shape.head_size, device=there)
    starts = starts.to(there)
    return lambda: paged_attention(q, cache, 0, tables, lengths, starts, cut, device)


def tune_launch(tuner: Tuner) -> Iterator[str]:
    """Whether launches overlap: a whole decode step of one row, both ways. Needs a card that can."""
    if not tuner.wants(LAUNCH_KEY) or not open_device(tuner.device.torch_device, pdl=True).pdl:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), "packed", tuner.preset)
        times = []
        for pdl in (False, True):
            model = load_model(path, triton_kernels.load("cuda", pdl=pdl), head_dtype="bf16")
            batch, blocks = decode_batch(1, 1024, model.config.vocab_size)
            cache = model.new_cache(blocks, BLOCK_TOKENS, "bf16")
            options = Options(path, "cuda", (1,), 1024, 0, 20, (1,))
            times.append(seconds(lambda: model.forward(batch, cache), options))  # noqa: B023 (called at once)
    tuner.rows[LAUNCH_KEY] = {"in_flight": 2 if times[1] < 0.98 * times[0] else 1}
    print(f"launch: {times[0] * 1e6:.0f} us one after another, {times[1] * 1e6:.0f} us overlapping")
    yield LAUNCH_KEY


TUNE = {"linear": tune_linears, "gated": tune_gated, "attention": tune_attention, "launch": tune_launch}


def codes(num_tokens: int, k: int, device: Device) -> Any:
    return quantize(torch.randn(num_tokens, k, device=device.torch_device), None, 0.0, device)


def last(results: Iterator[Tensor]) -> Tensor:
    *_, result = results
    return result


def tune(tuner: Tuner, kinds: list[str], path: Path) -> None:
    """Measure what is wanted; the table is written after every row, so that nothing measured is lost."""
    table: dict[str, Rows] = read_table(path) if path.exists() else {}
    tuner.rows = table.setdefault(tuner.device.name, {})
    for kind in kinds:
        for _ in TUNE[kind](tuner):
            path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2b4t", choices=list(PRESETS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--limit", type=float, default=540, help="seconds for everything")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    if (reason := triton_kernels.unavailable_reason()) is not None:
        print(reason, file=sys.stderr)
        return 2
    device = open_device(torch.device("cuda"))
    options = Options(Path(), "cuda", (1,), 1024, 0, 10, (1,))

    def time_of(work: Callable[[], Tensor]) -> float:
        return seconds(CudaCapture()(work)[1], options)

    tune(Tuner(device, args.preset, time_of, time.monotonic() + args.limit, args.again), args.kinds, args.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
