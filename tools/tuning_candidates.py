"""Which tiles are worth timing for each kernel of the GPU wing, and which of them wins. Knows no device.

A dozen at most for a shape: compiling takes longer than timing. They are what compiles without spills for sm_80 and
sm_90 or nearly so (tests/triton_kernels/test_offline.py has the budgets); a candidate that does not compile or fit on a
card is passed over there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from triton_kernels.device import Device
from triton_kernels.tuning import COPY_ENGINE, OWN_ADDRESSES, AttentionTile, DenseTile, LinearTile, Regime

Tile = LinearTile | DenseTile | AttentionTile
SHARED_BYTES = 220 << 10


@dataclass(frozen=True, slots=True)
class Winner:
    """The fastest tile, its time, and the time of the heuristic's."""

    tile: Tile
    seconds: float
    heuristic_seconds: float


def choose(heuristic: Tile, candidates: Iterable[Tile], seconds: Callable[[Tile], float | None]) -> Winner | None:
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


def linear_candidates(
    form: Regime, bucket: int, num_packed: int, padded_k: int, device: Device
) -> Iterator[LinearTile | DenseTile]:
    """Tiles of one ternary linear, on packed weights and, from some tokens on, on int8 ones."""
    if form is Regime.GEMV:
        yield from gemv_candidates()
    if form is Regime.SMALL:
        yield from packed_candidates(bucket, num_packed, padded_k, device)
    if form is not Regime.GEMV and bucket >= 8:
        yield from dense_candidates(bucket, 4 * num_packed, padded_k, device)


def gemv_candidates() -> Iterator[LinearTile]:
    for packed, depth, warps in (
        *((4, 512, 4), (4, 1024, 4), (4, 2048, 4), (2, 512, 2), (2, 1024, 4), (2, 2048, 4)),
        *((8, 512, 4), (8, 1024, 8), (4, 512, 2), (8, 2048, 8)),
    ):
        yield LinearTile(packed, 1, depth, 1, warps, 1)


def packed_candidates(bucket: int, num_packed: int, padded_k: int, device: Device) -> Iterator[LinearTile]:
    """Narrow tiles, deep and with many stages: they wait for memory, not for products."""
    tokens = max(16, bucket)
    shapes = ((16, 256, 4, 6), (16, 256, 2, 6), (16, 512, 4, 4), (32, 256, 4, 4), (16, 128, 2, 8))
    for packed, depth, warps, stages in shapes[: 5 if bucket <= 32 else 2]:
        for split_k in splits(-(-num_packed // packed), padded_k, depth, device)[-2:]:
            yield LinearTile(packed, tokens, depth, split_k, warps, stages)


def dense_candidates(bucket: int, num_outputs: int, padded_k: int, device: Device) -> Iterator[DenseTile]:
    """Tiles of int8 weights: narrow ones with K split for few tokens, wide ones for many."""
    engine = COPY_ENGINE if device.wgmma else OWN_ADDRESSES
    if bucket <= 64:
        tokens = max(16, bucket)
        shapes = [(64, tokens, 128, 4, 6, engine), (64, tokens, 256, 4, 4, engine), (128, tokens, 128, 4, 5, engine)]
        shapes += [(64, tokens, 128, 4, 5, OWN_ADDRESSES)]
    elif bucket <= 256:
        shapes = [(64, 128, 128, 4, 5, engine), (128, 128, 128, 8, 4, engine), (128, 64, 128, 4, 5, engine)]
        shapes += [(64, bucket, 128, 4 * bucket // 128, 4, engine), (128, bucket, 128, 8, 4, engine)]
        shapes += [(128, 128, 128, 8, 3, OWN_ADDRESSES)]
    elif device.wgmma:
        shapes = [(128, 256, 128, 8, 4, engine), (256, 128, 128, 8, 4, engine), (128, 256, 128, 8, 3, engine)]
        shapes += [(128, 128, 128, 8, 4, engine), (128, 128, 128, 4, 3, engine), (64, 256, 128, 4, 3, engine)]
        shapes += [(128, 256, 64, 8, 6, engine), (256, 128, 128, 8, 3, OWN_ADDRESSES)]
    else:
        shapes = [(128, 128, 64, 8, 4, engine), (128, 128, 64, 4, 3, engine), (128, 64, 64, 4, 4, engine)]
        shapes += [(64, 128, 64, 4, 4, engine), (128, 128, 128, 8, 2, engine)]
    for rows, tokens, depth, warps, stages, fetch in dict.fromkeys(shapes):
        if (rows + tokens) * depth * stages > SHARED_BYTES or padded_k % depth:
            continue
        programs = -(-num_outputs // rows) * -(-bucket // tokens)
        most = 2 if depth == 128 and rows == 64 and fetch == engine else 1
        whole, *parts = splits(programs, padded_k, depth, device)
        for split_k in [whole, *parts[-most:]] if bucket <= 256 else [whole]:
            yield DenseTile(rows, tokens, depth, split_k, warps, stages, fetch)


def gated_dense_candidates(bucket: int, device: Device) -> Iterator[DenseTile]:
    """Tiles of gate and up multiplied in the epilogue: half of the rows are gate's, and 64 are a warp group's least."""
    engine = COPY_ENGINE if device.wgmma else OWN_ADDRESSES
    tokens = max(16, min(bucket, 256))
    for rows, width, warps, stages in (
        *((128, min(128, tokens), 8, 4), (128, min(128, tokens), 4, 4), (128, min(64, tokens), 4, 5)),
        *((128, tokens, 8, 3), (128, tokens, 8, 4), (256, min(128, tokens), 8, 4)),
    ):
        if (rows + width) * 128 * stages <= SHARED_BYTES:
            yield DenseTile(rows, width, 128, 1, warps, stages, engine)


def splits(programs: int, padded_k: int, depth: int, device: Device) -> list[int]:
    """Parts of K, ascending: whole, and those that leave a program or more for every processor."""
    turns, processors = padded_k // depth, device.num_processors
    parts = [part for part in range(1, 11) if padded_k % depth == 0 and turns % part == 0]
    wanted = {min(parts, key=lambda part: abs(part * programs - many * processors)) for many in (1, 2, 4) if parts}
    return sorted({1, *wanted}) if parts else []


def gated_candidates(form: Regime, bucket: int, num_packed: int, padded_k: int, device: Device) -> Iterator[LinearTile]:
    """Tiles of packed gate and up with the gate in the epilogue: those of a linear that own all of K."""
    if form is Regime.SMALL:
        yield from (tile for tile in packed_candidates(bucket, num_packed, padded_k, device) if tile.split_k == 1)


def attention_candidates(heuristic: AttentionTile) -> Iterator[AttentionTile]:
    """Shapes for prefill and decode alike; `rows` holds the heads of a group, which the heuristic's does."""
    for rows, keys, split, warps, stages in (
        *((16, 32, 128, 4, 7), (16, 32, 128, 4, 5), (32, 32, 128, 4, 5), (32, 32, 128, 4, 7), (16, 32, 64, 4, 5)),
        *((16, 32, 256, 4, 7), (16, 32, 128, 2, 5), (16, 64, 128, 4, 5), (32, 32, 64, 4, 5), (64, 32, 128, 4, 5)),
        *((16, 64, 64, 4, 5), (32, 32, 128, 2, 5)),
    ):
        if rows >= heuristic.rows // 2:
            yield AttentionTile(rows, keys, split, warps, stages)
