"""Decode steps as captured graphs: fixed buckets of rows, static input buffers, padding rows that touch nothing.

A launch costs the host more than most kernels of a decode step cost the device, so a step whose rows all carry one
token is replayed as one graph. Knows neither kernels nor the model: it is given the function that runs a step on
tensors, and the function that turns running it into a replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """One token a row, on the device. A padding row has slot -1 and length 0: it writes nothing and attends to nothing.

    token_ids, positions, slots  int64 [B]
    block_tables                 int32 [B, max_blocks]
    lengths                      int32 [B]
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    lengths: Tensor


class Capture(Protocol):
    """Runs `work` so that its launches are recorded; returns its result's tensor and what launches them again."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]: ...


Size = TypeVar("Size", bound=tuple[Any, ...])
Made = TypeVar("Made")


class Captures(Generic[Size, Made]):
    """What was captured, by size: asked for one, gives the smallest that holds it, and makes what is missing."""

    def __init__(self, make: Callable[[Size], Made], holds: Callable[[Size, Size], bool]) -> None:
        self._make = make
        self._holds = holds
        self._made: dict[Size, Made] = {}

    def __call__(self, size: Size) -> Made:
        if size not in self._made:
            larger = min((made for made in self._made if self._holds(made, size)), default=None)
            self._made[size] = self._make(size) if larger is None else self._made[larger]
        return self._made[size]


def same_but_wider(made: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """The same size with as many blocks of the table, its last number, or more."""
    return made[:-1] == size[:-1] and made[-1] >= size[-1]


class DecodeGraphs:
    """Captured steps of one cache, by (rows, blocks of the table); what is missing is captured when first needed.

    Not for use from two threads: the input buffers are shared by all calls.
    """

    def __init__(
        self,
        run: Callable[[DecodeInputs], Tensor],
        capture: Capture,
        device: torch.device,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        self._run = run
        self._capture = capture
        self._device = device
        self._buckets = tuple(sorted(buckets))
        self._captured = Captures(self._made, same_but_wider)

    @property
    def largest(self) -> int:
        return self._buckets[-1]

    def step(self, inputs: DecodeInputs) -> Tensor:
        """Run one decode step of up to `largest` rows: the result of `run` for these rows [B, ...].

        `inputs` may be on the host. The returned tensor is overwritten by the next step of the same bucket.
        """
        num_rows, width = inputs.block_tables.shape
        static, result, replay = self._captured((self.bucket(num_rows), table_width(width)))
        given = Inputs(static.num_rows, static.max_blocks, torch.device("cpu"))
        for buffer, values in zip(tensors(given.rows), tensors(inputs), strict=True):
            buffer[:num_rows].narrow(-1, 0, values.shape[-1]).copy_(values)
        static.bytes.copy_(given.bytes, non_blocking=True)
        replay()
        return result[:num_rows]

    def buckets_for(self, max_rows: int) -> tuple[int, ...]:
        """The buckets that steps of up to this many rows may need; rows past the largest are not run as graphs."""
        return tuple(size for size in self._buckets if size <= self.bucket(min(max_rows, self.largest)))

    def prepare(self, max_rows: int, max_blocks: int) -> Iterator[int]:
        """Capture what steps of up to `max_rows` need for tables of up to `max_blocks`; yields how many are left.

        Largest first: the smaller ones then find room in the memory pool of the larger.
        """
        buckets = self.buckets_for(max_rows)
        for left, bucket in zip(range(len(buckets) - 1, -1, -1), reversed(buckets), strict=True):
            self._captured((bucket, table_width(max_blocks)))
            yield left

    def bucket(self, num_rows: int) -> int:
        """The smallest bucket that holds this many rows; ValueError past the largest."""
        return bucket_of(num_rows, self._buckets)

    def _made(self, size: tuple[int, int]) -> tuple[Inputs, Tensor, Callable[[], None]]:
        static = Inputs(*size, self._device)
        return static, *self._capture(lambda: self._run(static.rows))


class Staging:
    """Tensors of these shapes and types in one run of bytes, so that one copy fills them all; zeros when made."""

    def __init__(self, parts: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        # each begins where 16-byte loads may
        sizes = [-(-math.prod(shape) * dtype.itemsize // 16) * 16 for shape, dtype in parts]
        self.bytes = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        self.tensors = tuple(
            run.view(dtype)[: math.prod(shape)].view(shape)
            for run, (shape, dtype) in zip(torch.split(self.bytes, sizes), parts, strict=True)
        )


class Inputs(Staging):
    """Buffers of nothing but padding rows. A capture may run on them without touching any request's cache."""

    def __init__(self, num_rows: int, max_blocks: int, device: torch.device) -> None:
        self.num_rows, self.max_blocks = num_rows, max_blocks
        ids, counts = ((num_rows,), torch.int64), ((num_rows,), torch.int32)
        super().__init__((ids, ids, ids, ((num_rows, max_blocks), torch.int32), counts), device)
        self.rows = DecodeInputs(*self.tensors)
        self.rows.slots.fill_(NO_SLOT)


def bucket_of(num_rows: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds this many rows; ValueError past the largest."""
    for size in buckets:
        if num_rows <= size:
            return size
    raise ValueError(f"{num_rows} rows are more than the largest bucket of {buckets[-1]}")


def tensors(inputs: DecodeInputs) -> tuple[Tensor, ...]:
    return tuple(getattr(inputs, field.name) for field in fields(inputs))


def table_width(max_blocks: int) -> int:
    """Tables come in powers of two from 16 blocks, so that growing rows need few captures."""
    return max(16, 1 << (max_blocks - 1).bit_length())


class CudaCapture:
    """Records into CUDA graphs that share one memory pool (their results never live at once, except the last)."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels compile on their first launch, which a capture does not survive
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        self._pool = graph.pool()
        return result, graph.replay
