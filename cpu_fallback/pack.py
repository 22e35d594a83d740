"""The wing's private layout of ternary weights: one int8 per weight, rows in canonical order.

Unpacks the checkpoint's planes (four rows per byte) segment by segment into one matrix, so fused projections become
one linear. A float copy is never made here; `linear.py` widens one block at a time. Knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_EXACT = 1 << 24
"""Integers up to here are exact in fp32, and so are their sums in any order while these stay below it."""
MAX_CODE = 127
"""Largest magnitude of an activation code (and of an int8 head weight)."""


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """codes int8 [N, K] in -1, 0, 1; row_scale f32 [N]."""

    codes: Tensor
    row_scale: Tensor


def pack(segments: Sequence[tuple[Tensor, Tensor]]) -> PackedWeights:
    """Stack segments (planes uint8 [Ni/4, K], row_scale f32 [Ni]) into one [N, K] matrix; the inputs are copied.

    Raises ValueError with the numbers on wrong shapes or dtypes, on a K that is no multiple of 4 or so large that
    integer sums would not be exact, and on the unused code 3.
    """
    if not segments:
        raise ValueError("pack needs at least one segment, got none")
    K = segments[0][0].shape[-1]
    for index, (planes, row_scale) in enumerate(segments):
        _check_segment(index, planes, row_scale, K)
    rows = [4 * planes.shape[0] for planes, _ in segments]
    codes = torch.empty(sum(rows), K, dtype=torch.int8)
    for (planes, _), out in zip(segments, torch.split(codes, rows), strict=True):
        _unpack(planes, out)
    return PackedWeights(codes, torch.cat([row_scale for _, row_scale in segments]))


def _check_segment(index: int, planes: Tensor, row_scale: Tensor, K: int) -> None:
    where = f"segment {index}"
    if planes.dtype != torch.uint8 or planes.ndim != 2 or planes.shape[0] == 0:
        raise ValueError(f"{where}: planes must be uint8 [N/4, K], got {planes.dtype} {list(planes.shape)}")
    if planes.shape[1] != K:
        raise ValueError(f"{where}: has K = {planes.shape[1]}, segment 0 has K = {K}")
    if K == 0 or K % 4:
        raise ValueError(f"{where}: K must be a positive multiple of 4, got {K}")
    if K * MAX_CODE >= MAX_EXACT:
        raise ValueError(f"{where}: K = {K} is too large, {MAX_CODE} * K must stay below {MAX_EXACT}")
    if row_scale.dtype != torch.float32 or list(row_scale.shape) != [4 * planes.shape[0]]:
        expected = f"f32 [{4 * planes.shape[0]}]"
        raise ValueError(f"{where}: row_scale must be {expected}, got {row_scale.dtype} {list(row_scale.shape)}")
    # Both bits of a pair set is code 3, which the format does not use: read as a weight it would be +2.
    if bool(((planes & (planes >> 1)) & 0x55).any()):
        raise ValueError(f"{where}: holds code 3, which is no ternary weight")


def _unpack(planes: Tensor, out: Tensor) -> None:
    """planes uint8 [N/4, K] -> out int8 [N, K]: bit pair i of byte row r is row r + i * N/4, code = ternary + 1."""
    for index, quarter in enumerate(out.view(4, *planes.shape).unbind()):
        quarter.copy_((planes >> (2 * index)) & 3).sub_(1)
