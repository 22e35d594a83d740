"""The weight layout of this wing: the checkpoint's own planes along the output dimension, one byte operation at load.

A packed byte of a segment of N rows holds rows r, r + N/4, r + 2N/4, r + 3N/4. Stored here is that byte minus 64 (mod
256), which leaves plane p < 3 as (ternary + 1) * 4^p under the masks 0x03, 0x0c, 0x30 and turns plane 3 into the
two's complement ternary * 64 under the mask 0xc0. So a kernel masks in place and never shifts a weight: the four plane
sums come out scaled by 1, 4, 16 and 64, exactly, and are scaled back once per output. K stays contiguous, as tensor
cores want it. Segments (q | k | v, gate | up) follow one another as rows with planes of their own.

A second copy at one byte a weight, for steps of many tokens, can be unpacked from that; `dense.py` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

K_ALIGN = 128
DENSE_RATIO = 4
"""Bytes of `Dense` to those of packed weights."""
NEUTRAL = 0x55  # four times code 1, which is ternary 0


@dataclass(frozen=True, slots=True)
class Dense:
    """The same weights at one byte each, in canonical order.

    weights    int8 [N, padded_k]  -1, 0 or 1; zeros past K
    row_scale  f32  [N]
    """

    weights: Tensor
    row_scale: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """The ternary weights of one fused linear. P packed rows hold N = 4 P outputs.

    planes     int8 [P, padded_k]  the bytes described above
    row_scale  f32  [4, P]         of the output that plane p of packed row r belongs to
    first      int32 [P]           output column of plane 0 of a packed row
    step       int32 [P]           columns from one plane to the next: output = first + p * step
    dense      the copy for many tokens, where there is room for it
    """

    planes: Tensor
    row_scale: Tensor
    first: Tensor
    step: Tensor
    num_inputs: int
    dense: Dense | None = None

    @property
    def num_packed(self) -> int:
        return self.planes.shape[0]

    @property
    def num_outputs(self) -> int:
        return 4 * self.planes.shape[0]

    @property
    def padded_k(self) -> int:
        return self.planes.shape[1]


def padded(k: int) -> int:
    """K as kernels see it: codes and weights are padded so that no kernel masks along K."""
    return -(-k // K_ALIGN) * K_ALIGN


def pack(segments: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Weights:
    """Move segments (planes uint8 [N/4, K], row_scale f32 [N]) to `device` in the layout of this wing.

    ValueError when the segments disagree on K or a row_scale does not have four entries per packed row.
    """
    check(segments)
    k = segments[0][0].shape[1]
    rows = [planes.shape[0] for planes, _ in segments]
    stored = torch.full((sum(rows), padded(k)), NEUTRAL, dtype=torch.uint8)
    row_scale = torch.empty(4, sum(rows), dtype=torch.float32)
    first = torch.empty(sum(rows), dtype=torch.int32)
    start = 0
    for (planes, scale), count in zip(segments, rows, strict=True):
        here = slice(start, start + count)
        stored[here, :k] = planes.cpu()
        row_scale[:, here] = scale.cpu().float().view(4, count)
        first[here] = torch.arange(count, dtype=torch.int32) + 4 * start
        start += count
    step = torch.repeat_interleave(torch.tensor(rows, dtype=torch.int32), torch.tensor(rows))
    stored.sub_(64)
    return Weights(
        planes=stored.view(torch.int8).to(device),
        row_scale=row_scale.to(device),
        first=first.to(device),
        step=step.to(device),
        num_inputs=k,
    )


def unpacked(w: Weights) -> Dense:
    """One byte a weight, made on the device that the packed weights are on."""
    held = torch.empty(w.num_outputs, w.padded_k, dtype=torch.int8, device=w.planes.device)
    row_scale = torch.empty(w.num_outputs, dtype=torch.float32, device=w.planes.device)
    stored = w.planes.view(torch.uint8) + 64
    for plane in range(4):
        rows = w.first.long() + plane * w.step.long()
        held[rows] = ((stored >> (2 * plane)) & 3).to(torch.int8) - 1
        row_scale[rows] = w.row_scale[plane]
    return Dense(held, row_scale)


def dense_bytes(w: Weights) -> int:
    """What `unpacked` would take."""
    return w.num_outputs * (w.padded_k + 4)


def check(segments: Sequence[tuple[Tensor, Tensor]]) -> None:
    if not segments:
        raise ValueError("pack needs at least one segment")
    k = segments[0][0].shape[-1]
    for index, (planes, scale) in enumerate(segments):
        if planes.dim() != 2 or planes.dtype != torch.uint8 or 0 in planes.shape:
            raise ValueError(f"segment {index}: planes must be uint8 [N/4, K], not {planes.dtype} {list(planes.shape)}")
        if planes.shape[1] != k:
            raise ValueError(f"segment {index} has K = {planes.shape[1]}, segment 0 has K = {k}")
        if scale.shape != (4 * planes.shape[0],):
            raise ValueError(
                f"segment {index}: {planes.shape[0]} packed rows need a row_scale of {4 * planes.shape[0]} values, "
                f"not {list(scale.shape)}"
            )
