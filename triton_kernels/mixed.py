"""Steps that are more than decode as captured graphs: prompts, or pieces of them, with rows that decode beside them.

Launched one by one, the kernels of such a step cost the host more than most of them cost the device: the 420 of 2,048
tokens took 35 ms of an H200's machine and 24 of the card (2026-11-26). What varies is rounded up: the tokens, the rows
and the blocks of their tables. Padding tokens are all in the last row, which has no keys: they attend to nothing and
are written nowhere. Knows neither kernels nor the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triton_kernels.graphs import NO_SLOT, Capture, Captures, Staging, bucket_of, same_but_wider, table_width

TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
ROWS = (8, 64, 257)
"""One of them is the padding row."""
Cut = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, slots=True)
class MixedInputs:
    """A ragged step on the device.

    token_ids, positions, slots  int64 [T]
    block_tables                 int32 [R, max_blocks]
    lengths                      int32 [R]
    starts                       int32 [R + 1]
    block_row, block_first       int32 [N]  query blocks (`attention.QueryBlocks`)
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    lengths: Tensor
    starts: Tensor
    block_row: Tensor
    block_first: Tensor


class MixedGraphs:
    """Captured steps of one cache, by (tokens, rows, blocks of the table); what is missing is captured when needed.

    cut: the query blocks of rows at given starts, int32 [2, N] on the host (row and first token); no more of them than
    T // block_tokens and one for every row. Not for use from two threads: the input buffers are shared by all calls.
    """

    def __init__(
        self,
        run: Callable[[MixedInputs], Tensor],
        capture: Capture,
        device: torch.device,
        cut: Cut,
        block_tokens: int,
        tokens: Sequence[int] = TOKENS,
        rows: Sequence[int] = ROWS,
    ) -> None:
        self._run = run
        self._capture = capture
        self._device = device
        self._cut, self._block_tokens = cut, block_tokens
        self._tokens, self._rows = tuple(sorted(tokens)), tuple(sorted(rows))
        self._captured = Captures(self._made, same_but_wider)

    def fits(self, num_tokens: int, num_rows: int) -> bool:
        return 0 < num_tokens <= self._tokens[-1] and num_rows < self._rows[-1]

    def step(self, batch: Any) -> Tensor:
        """Run one step that `fits`: the result of `run` for the batch's tokens [T, ...].

        The batch is on the host. The returned tensor is overwritten by the next step of the same bucket.
        """
        num_tokens, (num_rows, width) = batch.token_ids.shape[0], batch.block_tables.shape
        size = bucket_of(num_tokens, self._tokens), bucket_of(num_rows + 1, self._rows), table_width(width)
        static, result, replay = self._captured(size)
        given = self._padded(static.size, batch)
        static.bytes.copy_(given.bytes, non_blocking=True)
        replay()
        return result[:num_tokens]

    def sizes(self, max_tokens: int, max_rows: int) -> list[tuple[int, int]]:
        """(tokens, rows) that steps of up to so many may need, the largest first."""
        most = bucket_of(min(max_tokens, self._tokens[-1]), self._tokens)
        rows = bucket_of(min(max_rows + 1, self._rows[-1]), self._rows)
        return [(t, r) for t in reversed(self._tokens) if t <= most for r in reversed(self._rows) if r <= rows]

    def prepare(self, max_tokens: int, max_rows: int, max_blocks: int) -> Iterator[int]:
        """Capture what steps may need for tables of up to `max_blocks`; yields how many are left."""
        sizes = self.sizes(max_tokens, max_rows)
        for left, size in zip(range(len(sizes) - 1, -1, -1), sizes, strict=True):
            self._captured((*size, table_width(max_blocks)))
            yield left

    def _made(self, size: tuple[int, int, int]) -> tuple[Padded, Tensor, Callable[[], None]]:
        static = Padded(size, self._block_tokens, self._device)
        static.bytes.copy_(self._padded(size, None).bytes)
        return static, *self._capture(lambda: self._run(static.inputs))

    def _padded(self, size: tuple[int, int, int], batch: Any | None) -> Padded:
        """Inputs on the host: a batch in front of the padding, or nothing but padding."""
        given = Padded(size, self._block_tokens, torch.device("cpu"))
        if batch is not None:
            given.fill(batch)
        given.place(self._cut(given.inputs.starts.tolist()))
        return given


class Padded(Staging):
    """Buffers for (tokens, rows, blocks of the table), all padding until filled."""

    def __init__(self, size: tuple[int, int, int], block_tokens: int, device: torch.device) -> None:
        self.size = num_tokens, num_rows, width = size
        # every row may end in a block that is not full
        num_blocks = num_tokens // block_tokens + num_rows
        ids, blocks = ((num_tokens,), torch.int64), ((num_blocks,), torch.int32)
        rows = (((num_rows, width), torch.int32), ((num_rows,), torch.int32), ((num_rows + 1,), torch.int32))
        super().__init__((ids, ids, ids, *rows, blocks, blocks), device)
        self.inputs = MixedInputs(*self.tensors)
        self.inputs.slots.fill_(NO_SLOT)
        self.inputs.starts[num_rows:] = num_tokens

    def fill(self, batch: Any) -> None:
        """Put a batch in front of the padding."""
        to = self.inputs
        num_tokens, (num_rows, width) = batch.token_ids.shape[0], batch.block_tables.shape
        for ids, values in ((to.token_ids, batch.token_ids), (to.positions, batch.positions), (to.slots, batch.slots)):
            ids[:num_tokens] = values
        to.block_tables[:num_rows, :width] = batch.block_tables
        to.lengths[:num_rows] = batch.lengths
        to.starts[:num_rows] = batch.starts[:-1]
        to.starts[num_rows:-1] = num_tokens

    def place(self, blocks: Tensor) -> None:
        """The query blocks int32 [2, N]. What is left of the buffers names the last row, past its end."""
        num_tokens, num_rows, _ = self.size
        to, count = self.inputs, blocks.shape[1]
        to.block_row[:count], to.block_first[:count] = blocks
        to.block_row[count:], to.block_first[count:] = num_rows - 1, num_tokens
