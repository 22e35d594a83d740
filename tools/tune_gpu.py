"""Time the tiles of the GPU wing on the card that is here and write the winners to the tuning table.

    python -m tools.tune_gpu [--preset 2b4t] [--kinds attention linear gated launch] [--seconds 540] [--table FILE]

Run by hand, once per card; the server only reads the table (triton_kernels/tuning.json). Rows that are there are kept,
so a call that ran out of its time is continued by the next one; --again measures them anew. Weights are those of many
layers in turn, so that they come from memory and not from the L2 cache. The candidates of the linears are compiled
beforehand by as many processes as there are cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triton_kernels
from benchmarks.gpu.bench import BLOCK_TOKENS, Options, decode_batch, seconds
from bitnet_model.checkpoint import load_model
from tools.make_checkpoint import PRESETS, write_checkpoint
from tools.tuner import BUCKETS, Rows, Tuner, passed_over
from tools.tuning_candidates import Tile, attention_candidates, choose
from tools.tuning_compiler import AttentionJob, Compilers, spare_cores
from tools.tuning_linears import tune_gated, tune_linears
from triton_kernels.attention import paged_attention
from triton_kernels.cache import new_cache
from triton_kernels.device import Device, open_device
from triton_kernels.graphs import CudaCapture
from triton_kernels.query_blocks import query_blocks
from triton_kernels.tuning import LAUNCH_KEY, TABLE, attention_key, attention_tile, read_table

KINDS = ("attention", "linear", "gated", "launch")


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

    heuristic = attention_tile(size, group, dataclasses.replace(device, tuned={}))
    tiles = dict.fromkeys((heuristic, *attention_candidates(heuristic)))
    compilers = Compilers(device, tuner.workers)
    jobs = {tile: AttentionJob(tile, shape.heads, shape.kv_heads, size, BLOCK_TOKENS) for tile in tiles}
    for job in jobs.values():
        compilers.add(job)

    def taken(tile: Tile) -> float | None:
        why = compilers.failure(jobs[tile], tuner.left_s)  # type: ignore[index]
        if why:
            return passed_over(why)
        trial = tuner.with_row(key, tile)
        times = [tuner.seconds(attention_work(trial, shape, *work)) for work in works]
        return None if None in times else sum(time_s for time_s in times if time_s is not None)

    winner = choose(heuristic, tiles, taken)
    compilers.close()
    if tuner.left_s > 0:
        tuner.take(key, winner)
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
    parser.add_argument("--buckets", type=int, nargs="+", default=list(BUCKETS), help="numbers of tokens, in order")
    parser.add_argument("--seconds", type=float, default=540, help="for everything")
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

    until = time.monotonic() + args.seconds
    tuner = Tuner(device, args.preset, time_of, until, args.again, tuple(args.buckets), spare_cores())
    tune(tuner, args.kinds, args.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
