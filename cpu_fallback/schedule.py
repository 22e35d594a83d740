"""What paged attention has to compute for one batch: pairs of a query tile and a key tile, cut into tasks.

Tiles are aligned to absolute position, for queries as for keys, so a query sits in the same row of the same matrix
shape whatever else is in the batch and however its prompt was cut. A pair exists only where the query tile sees the key
tile; rows of very different lengths cost what they hold, never the longest length times their number. Plain numpy,
once per step. Knows no tensor of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEY_TILE = 64
"""Keys per tile."""
QUERY_ROWS = 8
"""Rows of a query tile's matrix aimed at (queries x query heads per KV head). Per pair of 5 KV heads x 128 on one Zen 3
thread (2025-11), reads of 24 us included, at 4, 8, 16, 64 rows: 44, 50, 65, 154 us; so 16 rows at 500 keys decode in 6,
7, 10, 20 ms a layer, and 512 prompt tokens take 108, 62, 43, 30 ms. 8 gives the least sum beside the linears."""
TASK_PAIRS = 32
"""Pairs of one task, about: enough for 16 rows at 500 keys to keep several threads busy."""
CHUNK_VALUES = 1 << 18
"""Key values widened at a time (1 MB in fp32), to stay in the L2 cache."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pairs start .. stop - 1 of a task, and where their outputs belong: (first item, last item + 1, first pair)."""

    start: int
    stop: int
    tiles: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Query tiles first .. last - 1 ("items", most keys first) and their pairs, ordered by key tile, then item.

    Key tile j is seen by items 0 .. counts[j] - 1 of the task.
    """

    first: int
    last: int
    counts: tuple[int, ...]
    items: Tensor  # int64 [P], the pair's item within the task
    key_tiles: Tensor  # int64 [P], the pair's row in Schedule.key_slots
    masks: Tensor  # int64 [P], the pair's row in the table of masks
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All tasks of a batch. `rows` int64 [T]: each query's row among the padded items [num_items * query_tile]."""

    num_items: int
    rows: Tensor
    key_slots: Tensor  # int64 [key tiles, KEY_TILE]
    tasks: tuple[Task, ...]


def query_tile(group: int) -> int:
    """Queries per tile for `group` query heads per KV head: a power of two, so tiles never straddle a key tile."""
    tile = 1
    while tile < KEY_TILE and 2 * tile * group <= QUERY_ROWS:
        tile *= 2
    return tile


def build(
    block_tables: Tensor, lengths: Tensor, starts: Tensor, block_tokens: int, zero_slot: int, tile: int, values: int
) -> Schedule:
    """Schedule rows of `lengths` keys [B], queries starts[b] .. starts[b+1] - 1, with query tiles of `tile` queries.

    `values` is the number of key values in a key tile (Hkv * KEY_TILE * D).
    """
    ends = lengths.numpy().astype(np.int64)
    offsets = starts.numpy().astype(np.int64)
    counts = np.diff(offsets)
    begins = ends - counts
    key_counts = -(-ends // KEY_TILE)
    key_bases = np.cumsum(key_counts) - key_counts

    first_tiles = begins // tile
    item_counts = (ends - 1) // tile - first_tiles + 1
    item_bases = np.cumsum(item_counts) - item_counts
    item_rows = np.repeat(np.arange(len(ends)), item_counts)
    item_begins = (np.arange(len(item_rows)) - item_bases[item_rows] + first_tiles[item_rows]) * tile
    item_keys = item_begins // KEY_TILE + 1
    order = np.argsort(-item_keys, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))

    query_rows = np.repeat(np.arange(len(ends)), counts)
    positions = np.arange(offsets[-1]) - offsets[query_rows] + begins[query_rows]
    items = rank[item_bases[query_rows] + positions // tile - first_tiles[query_rows]]

    sizes = item_keys[order]
    cuts = np.flatnonzero(np.diff((np.cumsum(sizes) - sizes) // TASK_PAIRS, prepend=-1, append=-1))
    chunk_pairs = max(1, CHUNK_VALUES // values)
    tasks = tuple(
        _task(first, last, sizes, key_bases[item_rows[order]], item_begins[order] % KEY_TILE // tile, tile, chunk_pairs)
        for first, last in pairwise(cuts.tolist())
    )
    slots = _key_slots(block_tables.numpy(), ends, key_counts, key_bases, block_tokens, zero_slot)
    return Schedule(len(order), torch.from_numpy(items * tile + positions % tile), torch.from_numpy(slots), tasks)


def _task(first: int, last: int, sizes: Ints, bases: Ints, masks: Ints, tile: int, chunk_pairs: int) -> Task:
    """Items first .. last - 1, which see sizes[i] key tiles (falling) from row bases[i] of the key slots on."""
    tiles = np.arange(sizes[first])
    counts = np.searchsorted(-sizes[first:last], -tiles)  # sizes[i] > j, and sizes fall
    starts = np.cumsum(counts) - counts
    key_tiles = np.repeat(tiles, counts)
    items = np.arange(counts.sum()) - starts[key_tiles]
    diagonal = key_tiles == sizes[first + items] - 1
    return Task(
        first=first,
        last=last,
        counts=tuple(counts.tolist()),
        items=torch.from_numpy(items),
        key_tiles=torch.from_numpy(bases[first + items] + key_tiles),
        masks=torch.from_numpy(np.where(diagonal, masks[first + items], KEY_TILE // tile)),
        chunks=tuple(_chunks(starts.tolist(), counts.tolist(), chunk_pairs)),
    )


def _chunks(starts: list[int], counts: list[int], chunk_pairs: int) -> list[Chunk]:
    num_pairs = starts[-1] + counts[-1]
    chunks = []
    for start in range(0, num_pairs, chunk_pairs):
        stop = min(start + chunk_pairs, num_pairs)
        tiles = tuple(
            (max(start, lo) - lo, min(stop, lo + count) - lo, max(start, lo))
            for lo, count in zip(starts, counts, strict=True)
            if lo < stop and start < lo + count
        )
        chunks.append(Chunk(start, stop, tiles))
    return chunks


def _key_slots(tables: Ints, ends: Ints, key_counts: Ints, key_bases: Ints, block_tokens: int, zero_slot: int) -> Ints:
    """The slots of every key tile of every row; the zero slot beyond a row's length."""
    rows = np.repeat(np.arange(len(ends)), key_counts)
    tiles = np.arange(len(rows)) - key_bases[rows]
    positions = tiles[:, None] * KEY_TILE + np.arange(KEY_TILE)
    inside = positions < ends[rows][:, None]
    blocks = tables[rows[:, None], np.where(inside, positions, 0) // block_tokens].astype(np.int64)
    return np.where(inside, blocks * block_tokens + positions % block_tokens, zero_slot)
