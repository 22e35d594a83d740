"""Compiles what is about to be timed, on all cores: Triton keeps it on disk, where the process that times finds it.

A kernel compiles for seconds and runs for microseconds, and a table has hundreds of candidates. Each job runs the
wing's own launchers on tensors without memory (device "meta"), so what is compiled is what will be launched.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from triton_kernels.attention import attend
from triton_kernels.cache import new_cache
from triton_kernels.dense_gated import dense_gated
from triton_kernels.device import Device
from triton_kernels.gated import gated_linear
from triton_kernels.linear import ternary_linear
from triton_kernels.pack import Dense, Weights, padded
from triton_kernels.pointwise import new_quantized
from triton_kernels.query_blocks import QueryBlocks
from triton_kernels.tuning import AttentionTile, DenseTile, LinearTile


class Compiler(Device):
    """A device that compiles for the card of this process and launches nothing."""

    __slots__ = ()

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *, num_warps: int, num_stages: int = 1, **arguments: Any
    ) -> None:
        kernel.warmup(
            **arguments,
            PDL=self.pdl,
            grid=grid,
            num_warps=num_warps,
            num_stages=num_stages,
            enable_fp_fusion=False,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One tile of one linear [N, K] for so many tokens; `gated` is gate and up multiplied."""

    key: str
    tile: LinearTile | DenseTile
    tokens: int
    num_outputs: int
    num_inputs: int
    gated: bool = False


@dataclass(frozen=True, slots=True)
class AttentionJob:
    """One tile of attention over a bf16 cache, with splits shared and not."""

    tile: AttentionTile
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int


def run_job(job: Job | AttentionJob, facts: Mapping[str, Any]) -> None:
    """Compile one job's kernels for a device of these facts (`facts_of`)."""
    device = Compiler(**{**facts, "torch_device": torch.device("meta")})
    if isinstance(job, AttentionJob):
        compile_attention(job, device)
    else:
        compile_linear(job, dataclasses.replace(device, tuned={job.key: dataclasses.asdict(job.tile)}))


def compile_attention(job: AttentionJob, device: Device) -> None:
    cache = new_cache(1, 1, job.block_tokens, job.num_kv_heads, job.head_dim, "bf16", device)
    ids = device.empty(4, dtype=torch.int32)
    q = device.empty(4, job.num_heads, job.head_dim, dtype=torch.float32)
    out, tables = device.empty(4, q[0].numel(), dtype=torch.float32), device.empty(4, 1, dtype=torch.int32)
    arrived = device.empty(4, job.num_kv_heads, dtype=torch.int32)
    for programs in (1, 2):
        for single in (True, False):
            blocks = QueryBlocks(ids, ids, arrived, single)
            attend(out, q, cache, 0, tables, ids, ids, blocks, job.tile, programs, programs, device)


def compile_linear(job: Job, device: Device) -> None:
    q, w = new_quantized(job.tokens, job.num_inputs, device), empty_weights(job.num_outputs, job.num_inputs, device)
    if not job.gated:
        ternary_linear(q, w, None, device)
    elif isinstance(job.tile, LinearTile):
        gated_linear(q, w, "relu2", job.tile, device)
    elif w.dense is not None:
        out = device.empty(job.tokens, job.num_outputs // 2, dtype=torch.float32)
        dense_gated(out, q, w.dense, "relu2", job.tile, device)


def empty_weights(n: int, k: int, device: Device) -> Weights:
    rows = device.empty(n // 4, dtype=torch.int32)
    return Weights(
        device.empty(n // 4, padded(k), dtype=torch.int8),
        device.empty(4, n // 4, dtype=torch.float32),
        rows,
        rows,
        k,
        Dense(device.empty(n, padded(k), dtype=torch.int8), device.empty(n, dtype=torch.float32)),
    )


def facts_of(device: Device) -> dict[str, Any]:
    """What another process needs to know to compile for this device."""
    return {field.name: getattr(device, field.name) for field in dataclasses.fields(device)}


class Compilers:
    """Processes that compile jobs in the order they were given. `workers` 0 compiles nothing beforehand."""

    def __init__(self, device: Device, workers: int) -> None:
        self._facts = facts_of(device) | {"tuned": {}}
        self._jobs: dict[Job | AttentionJob, Future[None]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    def add(self, job: Job | AttentionJob) -> None:
        if self._pool is not None and job not in self._jobs:
            self._jobs[job] = self._pool.submit(run_job, job, self._facts)

    def failure(self, job: Job | AttentionJob, timeout_s: float) -> str:
        """Why the job does not compile, when that is known; empty where it does. Waits for its turn."""
        if job not in self._jobs:
            return ""
        try:
            self._jobs[job].result(max(0.0, timeout_s))
        except Exception as error:  # Triton raises many kinds, and each means that this tile is not for this card
            return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        return ""

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def spare_cores() -> int:
    """All but the one that times."""
    return max(1, len(os.sched_getaffinity(0)) - 1)
