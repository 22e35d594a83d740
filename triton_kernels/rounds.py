"""Tokens without the host in between: a draw as one replay, and rounds of decoding as one replay each.

A round is a decode step, the draw of its tokens and the inputs of the next round, all on the device; the host fills the
buffers once, replays as often as there are rounds, and fetches all tokens in one copy. What varies from call to call is
rounded up, as for decode steps: rows, blocks of a table, candidates, windows and biases. Knows neither kernels nor the
model: it is given the functions that run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triton_kernels.best import NO_ID, rounded
from triton_kernels.draw import NUM_PARAMETERS, Draws
from triton_kernels.graphs import BUCKETS, NO_SLOT, Capture, Captures, DecodeInputs, Staging, bucket_of, table_width
from triton_kernels.tuning import power_of_two

FEWEST_BIASES = 16
FEWEST_ROUNDS = 8


@dataclass(frozen=True, slots=True, order=True)
class Room:
    """What a capture has room for: candidates (1: the best alone), tokens of a window, biases, rounds."""

    candidates: int
    window: int
    biases: int
    rounds: int

    def holds(self, other: Room) -> bool:
        """Whether the other's draws fit: more candidates would only cost time, so they must be as many."""
        return (
            self.candidates == other.candidates
            and self.window >= other.window
            and self.biases >= other.biases
            and self.rounds >= other.rounds
        )


PLAIN = tuple(Room(candidates, rounded(1), FEWEST_BIASES, FEWEST_ROUNDS) for candidates in (1, rounded(1)))
"""What the greedy and the default draws need."""

DrawSize = tuple[int, Room]
"""Rows and room."""
RoundSize = tuple[int, int, Room]
"""Rows, blocks of the table, and room."""
CapturedDraw = tuple[DrawSize, Tensor, Staging, Tensor, Callable[[], None]]
"""Its size, hidden states, draws, tokens, and what runs it again."""
CapturedRound = tuple[RoundSize, Staging, Tensor, Callable[[], None]]
"""Its size, inputs and draws, tokens, and what runs it again."""

Draw = Callable[[Tensor, Draws, Tensor, int], None]
"""(hidden f32 [R, H], draws, drawn int64 [rounds, R], candidates): puts the tokens of this turn into `drawn`."""

Round = Callable[[DecodeInputs, Draws, Tensor, int], None]
"""(inputs, draws, drawn, candidates): a decode step and its draw; leaves the inputs of the next round."""


def room_for(batch: Any) -> Room:
    """The room that a `DrawBatch` takes."""
    temperature, top_k = batch.parameters[:, 0], batch.parameters[:, 1]
    candidates = rounded(int(top_k.max())) if bool((temperature > 0).any()) else 1
    return Room(
        candidates,
        rounded(max(1, int(batch.window_starts.diff().max()))),
        power_of_two(max(FEWEST_BIASES, int(batch.bias_starts.diff().max()))),
        power_of_two(max(FEWEST_ROUNDS, batch.randoms.shape[0])),
    )


def draw_parts(num_rows: int, room: Room) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types of the fields of `Draws`."""
    return (
        ((num_rows, NUM_PARAMETERS), torch.float64),
        ((room.rounds, num_rows), torch.float64),
        ((num_rows, room.window), torch.int64),
        ((num_rows,), torch.int32),
        ((num_rows, room.biases), torch.int64),
        ((num_rows, room.biases), torch.float32),
        ((1,), torch.int32),
    )


def fill_draws(to: Draws, batch: Any) -> None:
    """Put a `DrawBatch` in front of the padding. For buffers of zeros on the host."""
    rounds, num_rows = batch.randoms.shape
    to.parameters[:num_rows] = batch.parameters
    to.randoms[:rounds, :num_rows] = batch.randoms
    to.window_sizes[:num_rows] = batch.window_starts.diff()
    spread(to.windows, batch.windows, batch.window_starts)
    to.bias_ids.fill_(NO_ID)
    spread(to.bias_ids, batch.bias_ids, batch.bias_starts)
    spread(to.biases, batch.biases, batch.bias_starts)


def spread(to: Tensor, values: Tensor, starts: Tensor) -> None:
    """values [W], the rows one after the other from their starts [R + 1] on, into the rows of `to`."""
    if len(values):
        row = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
        to[row, torch.arange(len(values)) - starts[:-1].long()[row]] = values


class DrawGraphs:
    """Draws for hidden states on the device. Not for use from two threads."""

    def __init__(
        self, draw: Draw, capture: Capture, device: torch.device, width: int, buckets: Sequence[int] = BUCKETS
    ) -> None:
        self._draw = draw
        self._capture = capture
        self._device = device
        self._width = width
        self._buckets = tuple(sorted(buckets))
        self._captured: Captures[DrawSize, CapturedDraw] = Captures(
            self._made, lambda made, size: made[0] == size[0] and made[1].holds(size[1])
        )

    def __call__(self, hidden: Tensor, batch: Any) -> Tensor:
        """The next token of each row of hidden f32 [R, H], drawn as a `DrawBatch` of one round says: int64 [R]."""
        parts = [
            self._some(hidden[first : first + self._buckets[-1]], part)
            for first, part in pieces(batch, self._buckets[-1])
        ]
        return torch.cat(parts)

    def prepare(self, num_rows: int, room: Room) -> None:
        self._captured((bucket_of(num_rows, self._buckets), room))

    def _some(self, hidden: Tensor, batch: Any) -> Tensor:
        num_rows = hidden.shape[0]
        size, states, static, drawn, replay = self._captured((bucket_of(num_rows, self._buckets), room_for(batch)))
        given = Staging(draw_parts(*size), torch.device("cpu"))
        fill_draws(Draws(*given.tensors), batch)
        states[:num_rows].copy_(hidden)
        static.bytes.copy_(given.bytes, non_blocking=True)
        replay()
        return drawn[0, :num_rows].cpu()

    def _made(self, size: DrawSize) -> CapturedDraw:
        num_rows, room = size
        states = torch.zeros(num_rows, self._width, device=self._device)
        drawn = torch.zeros(room.rounds, num_rows, dtype=torch.int64, device=self._device)
        static = Staging(draw_parts(num_rows, room), self._device)

        def work() -> Tensor:
            self._draw(states, Draws(*static.tensors), drawn, room.candidates)
            return drawn

        _, replay = self._capture(work)
        return size, states, static, drawn, replay


class RoundGraphs:
    """Rounds of decoding on one cache. Not for use from two threads."""

    def __init__(self, run: Round, capture: Capture, device: torch.device, buckets: Sequence[int] = BUCKETS) -> None:
        self._run = run
        self._capture = capture
        self._device = device
        self._buckets = tuple(sorted(buckets))
        self._captured: Captures[RoundSize, CapturedRound] = Captures(
            self._made, lambda made, size: made[0] == size[0] and made[1] >= size[1] and made[2].holds(size[2])
        )

    def __call__(self, rows: Any, batch: Any, block_tokens: int) -> Tensor:
        """The tokens of all rounds of a `DrawBatch` for the rows of a `DecodeBatch`: int64 [rounds, B]."""
        most, parts = self._buckets[-1], []
        for first, part in pieces(batch, most):
            cut = slice(first, first + most)
            some = type(rows)(rows.token_ids[cut], rows.lengths[cut], rows.block_tables[cut])
            parts.append(self._some(some, part, block_tokens))
        return torch.cat(parts, dim=1)

    def prepare(self, num_rows: int, max_blocks: int, room: Room) -> None:
        self._captured((bucket_of(num_rows, self._buckets), table_width(max_blocks), room))

    def _some(self, rows: Any, batch: Any, block_tokens: int) -> Tensor:
        rounds, num_rows = batch.randoms.shape
        width = table_width(rows.block_tables.shape[1])
        size, static, drawn, replay = self._captured((bucket_of(num_rows, self._buckets), width, room_for(batch)))
        given = Staging(round_parts(*size), torch.device("cpu"))
        fill_rows(DecodeInputs(*given.tensors[:5]), rows, block_tokens)
        fill_draws(Draws(*given.tensors[5:]), batch)
        static.bytes.copy_(given.bytes, non_blocking=True)
        for _ in range(rounds):
            replay()
        return drawn[:rounds, :num_rows].cpu()

    def _made(self, size: RoundSize) -> CapturedRound:
        num_rows, width, room = size
        drawn = torch.zeros(room.rounds, num_rows, dtype=torch.int64, device=self._device)
        static = Staging(round_parts(num_rows, width, room), self._device)
        inputs, draws = DecodeInputs(*static.tensors[:5]), Draws(*static.tensors[5:])
        inputs.slots.fill_(NO_SLOT)

        def work() -> Tensor:
            self._run(inputs, draws, drawn, room.candidates)
            return drawn

        _, replay = self._capture(work)
        return size, static, drawn, replay


def round_parts(num_rows: int, width: int, room: Room) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types of the fields of `DecodeInputs`, and of those of `Draws`."""
    ids, counts = ((num_rows,), torch.int64), ((num_rows,), torch.int32)
    return (ids, ids, ids, ((num_rows, width), torch.int32), counts, *draw_parts(num_rows, room))


def fill_rows(to: DecodeInputs, rows: Any, block_tokens: int) -> None:
    """Put a `DecodeBatch` in front of the padding. For buffers of zeros on the host."""
    num_rows, width = rows.block_tables.shape
    positions = rows.lengths.long() - 1
    blocks = rows.block_tables[torch.arange(num_rows), positions // block_tokens].long()
    to.token_ids[:num_rows] = rows.token_ids
    to.positions[:num_rows] = positions
    to.slots.fill_(NO_SLOT)
    to.slots[:num_rows] = blocks * block_tokens + positions % block_tokens
    to.block_tables[:num_rows, :width] = rows.block_tables
    to.lengths[:num_rows] = rows.lengths


def pieces(batch: Any, most: int) -> Sequence[tuple[int, Any]]:
    """A `DrawBatch` cut into ones of at most so many rows, with the first row of each."""
    num_rows = batch.randoms.shape[1]
    if num_rows <= most:
        return [(0, batch)]
    cut = []
    for first in range(0, num_rows, most):
        rows, starts = slice(first, first + most), slice(first, first + most + 1)
        windows, biases = batch.window_starts[starts], batch.bias_starts[starts]
        cut.append(
            (
                first,
                type(batch)(
                    batch.parameters[rows],
                    batch.randoms[:, rows],
                    batch.windows[windows[0] : windows[-1]],
                    windows - windows[0],
                    batch.bias_ids[biases[0] : biases[-1]],
                    batch.biases[biases[0] : biases[-1]],
                    biases - biases[0],
                ),
            )
        )
    return cut
