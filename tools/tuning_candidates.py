"""Which tiles are worth timing for each kernel of the GPU wing, and which of them wins. Knows no device.

The ranges are what compiles without spills for sm_80 and sm_90 or nearly so (tests/triton_kernels/test_offline.py has
the budgets); a candidate that does not compile or fit on a card is passed over there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from triton_kernels.tuning import AttentionTile, LinearTile, Regime

Tile = LinearTile | AttentionTile


@dataclass(frozen=True, slots=True)
class Winner:
    """The fastest tile, its time, and the time of the heuristic's."""

    tile: Tile
    seconds: float
    heuristic_seconds: float


def choose(heuristic: Tile, candidates: Iterator[Tile], seconds: Callable[[Tile], float | None]) -> Winner | None:
    """The fastest by `seconds` (None: it does not run here); the heuristic's where nothing beats it by 2 %.

    None where not even the heuristic's tile runs.
    """
    first = seconds(heuristic)
    best = None if first is None else Winner(heuristic, 0.98 * first, first)
    for tile in candidates:
        if tile == heuristic:
            continue
        taken = seconds(tile)
        if taken is not None and (best is None or taken < best.seconds):
            best = Winner(tile, taken, taken if first is None else first)
    if best is not None and best.tile == heuristic and first is not None:
        return Winner(heuristic, first, first)
    return best


def linear_candidates(form: Regime, bucket: int, padded_k: int) -> Iterator[LinearTile]:
    """Tiles of one ternary linear; the depth of every tile but a GEMV's divides K."""
    if form is Regime.GEMV:
        for packed, depth, warps in product((2, 4, 8), (512, 1024, 2048), (2, 4, 8)):
            yield LinearTile(packed, 1, depth, 1, warps, 1)
        return
    depths = [depth for depth in (128, 256, 512) if padded_k % depth == 0]
    if form is Regime.SMALL:
        tokens = max(16, bucket)
        for packed, depth, split_k, warps, stages in product((16, 32, 64), depths, (1, 2, 3, 4), (2, 4), (3, 4)):
            if padded_k % (depth * split_k) == 0:
                yield LinearTile(packed, tokens, depth, split_k, warps, stages)
        return
    for (packed, tokens), depth, warps, stages in product(
        ((64, 64), (64, 128), (32, 128), (128, 64)), depths[:2], (4, 8), (2, 3, 4)
    ):
        yield LinearTile(packed, tokens, depth, 1, warps, stages)


def gated_candidates(form: Regime, bucket: int, padded_k: int) -> Iterator[LinearTile]:
    """Tiles of gate and up with the gate in the epilogue: those of a linear that own all of K."""
    if form is not Regime.GEMV:
        yield from (tile for tile in linear_candidates(form, bucket, padded_k) if tile.split_k == 1)


def attention_candidates(heuristic: AttentionTile) -> Iterator[AttentionTile]:
    """Shapes for prefill and decode alike; `rows` holds the heads of a group, which the heuristic's does."""
    for rows, keys, split, warps, stages in product((16, 32, 64), (16, 32, 64), (64, 128, 256), (4, 8), (2, 3)):
        if rows >= heuristic.rows // 2 and split % keys == 0:
            yield AttentionTile(rows, keys, split, warps, stages)
