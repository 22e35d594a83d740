"""What every section of the GPU suite shares: a model on a device, how things are timed there, and what a figure is."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triton_kernels
from bitnet_model.batch import ForwardBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from triton_kernels.graphs import CudaCapture

BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; every process of the suite gets the same."""

    folder: Path
    device: str
    batches: tuple[int, ...]
    context: int
    prompt: int
    repeat: int
    streams: tuple[int, ...]

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def load(self, *, head_dtype: str = "bf16", pdl: bool | None = None, dense: str = "auto") -> Model:
        wing = triton_kernels.load(self.device, pdl=pdl, dense=dense)
        return load_model(self.folder, wing, head_dtype=head_dtype)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `bound` is the time or rate of a perfect machine, `least` and `aim` are targets.

    ok: what had to hold, held (None: there was nothing to hold).
    """

    case: str
    value: float
    unit: str
    bound: float | None = None
    least: float | None = None
    aim: float | None = None
    ok: bool | None = None

    @property
    def fraction(self) -> float | None:
        """How near to the bound: 1 is perfect, for times and for rates."""
        if self.bound is None:
            return None
        return self.value / self.bound if self.unit.endswith("/s") else self.bound / self.value

    def row(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"fraction": self.fraction}


@dataclass(frozen=True, slots=True)
class Bench:
    """How things are timed on a device, and what the device can do by torch's own kernels, measured once a process."""

    options: Options
    bytes_per_s: float
    int8_per_s: float
    bf16_per_s: float

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    def seconds(self, work: Callable[[], object]) -> float:
        return seconds(work, self.options)

    def captured(self, work: Callable[[], Tensor]) -> Callable[[], object]:
        """The work as a graph on a GPU, and as it is elsewhere."""
        return CudaCapture()(work)[1] if self.options.on_gpu else work


def seconds(work: Callable[[], object], options: Options) -> float:
    """Median time of one call, after a warm-up; on a GPU until its results are there."""
    times = []
    work()
    for _ in range(options.repeat):
        wait(options)
        began = time.perf_counter()
        work()
        wait(options)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def wait(options: Options) -> None:
    if options.on_gpu:
        torch.cuda.synchronize()


def open_bench(options: Options) -> Bench:
    """Measure the limits: bytes a second copied (read and written), operations a second multiplied."""
    size = 8192 if options.on_gpu else 64
    device = torch.device(options.device)
    source = torch.empty(size * size * 8, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    a = torch.ones(size, size, dtype=torch.int8, device=device)
    x = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    return Bench(
        options,
        bytes_per_s=2 * source.numel() / seconds(lambda: target.copy_(source), options),
        int8_per_s=2 * size**3 / seconds(lambda: torch._int_mm(a, a.T), options),
        bf16_per_s=2 * size**3 / seconds(lambda: x @ x.T, options),
    )


def batch_of(rows: Sequence[tuple[Tensor, int]], blocks_per_row: int) -> ForwardBatch:
    """Rows of (token ids of this step, tokens computed before), each with blocks of its own, all logits wanted."""
    counts = torch.tensor([len(ids) for ids, _ in rows])
    positions = [torch.arange(before, before + len(ids)) for ids, before in rows]
    tables = torch.arange(len(rows) * blocks_per_row, dtype=torch.int32).view(len(rows), blocks_per_row)
    slots = [tables[i, at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS for i, at in enumerate(positions)]
    return ForwardBatch(
        token_ids=torch.cat([ids for ids, _ in rows]),
        positions=torch.cat(positions),
        slots=torch.cat(slots).to(torch.int64),
        block_tables=tables,
        lengths=torch.tensor([before + len(ids) for ids, before in rows], dtype=torch.int32),
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32),
        logit_rows=torch.arange(int(counts.sum())),
    )


def decode_batch(num_rows: int, context: int, vocab: int) -> tuple[ForwardBatch, int]:
    """One token a row at the last position of the context, and the blocks the cache needs."""
    blocks = -(-context // BLOCK_TOKENS)
    ids = random_ids(num_rows, vocab)
    return batch_of([(ids[i : i + 1], context - 1) for i in range(num_rows)], blocks), num_rows * blocks


def random_ids(count: int, vocab: int) -> Tensor:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(count))


def kv_bytes(plan: Any, context: int, dtype: str) -> int:
    """Bytes of one row's keys and values in one layer."""
    per_head = 2 * plan.head_dim if dtype == "bf16" else plan.head_dim + 4
    return 2 * int(plan.num_kv_heads) * per_head * context


def num_weights(plan: Any) -> int:
    """Ternary weights of all layers."""
    return sum(h.num_outputs * h.num_inputs for la in plan.layers for h in (la.qkv, la.o, la.gate_up, la.down))


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu(), b.cpu())
