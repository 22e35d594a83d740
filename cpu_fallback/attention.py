"""Paged causal attention over ragged rows, with bits that depend on a query's position and keys alone.

Every product is a `bmm` of one constant matrix shape per model (a query tile by a key tile of `schedule.py`); only the
number of matrices varies, which torch's bmm does not let into the results when it runs on one thread. The softmax
takes the exact maximum of a query's scores first, then adds up key tiles in order of position. Padding queries are
zero and dropped, masked scores are minus infinity, keys beyond a row's length come from the zero slot of the cache.
Idea: paged attention (arXiv 2309.06180) in the tiles of flash attention (arXiv 2205.14135).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpu_fallback.cache import Cache, Store
from cpu_fallback.schedule import KEY_TILE, Chunk, Schedule, Task, build, query_tile
from cpu_fallback.threads import WorkPool, scratch


class Attention:
    """The verb, with the schedule of the latest batch: all layers of a step share it."""

    def __init__(self, pool: WorkPool) -> None:
        self._pool = pool
        self._key: tuple[tuple[int, ...], tuple[Tensor, ...]] = ((), ())
        self._schedule: Schedule | None = None
        self._masks: dict[tuple[int, int], Tensor] = {}

    def paged(
        self, q: Tensor, cache: Cache, layer: int, block_tables: Tensor, lengths: Tensor, starts: Tensor
    ) -> Tensor:
        """q f32 [T, Hq, D] -> f32 [T, Hq * D]; query i of row b is at lengths[b] - (starts[b+1] - starts[b]) + i.

        Every row has at least one query. Raises ValueError where the heads do not fit the cache.
        """
        keys, values = cache.keys[layer], cache.values[layer]
        (T, Hq, D), Hkv = q.shape, keys.rows.shape[1]
        if Hq % Hkv or keys.rows.shape[2] != D:
            raise ValueError(f"{Hq} query heads of {D} do not fit a cache of {Hkv} heads of {keys.rows.shape[2]}")
        group = Hq // Hkv
        tile = query_tile(group)
        schedule = self._scheduled(block_tables, lengths, starts, cache, tile, Hkv * KEY_TILE * D)
        masks = self._mask_table(tile, group)
        queries = torch.zeros(schedule.num_items * tile, Hq * D)
        queries.index_copy_(0, schedule.rows, q.reshape(T, Hq * D))
        queries = queries.view(-1, tile, Hkv, group, D).transpose(1, 2).reshape(-1, Hkv, tile * group, D)
        out = torch.empty(queries.shape)

        def task(index: int) -> None:
            work = schedule.tasks[index]
            _attend(work, schedule.key_slots, masks, queries[work.first : work.last], keys, values, out)

        self._pool.run(len(schedule.tasks), task)
        out = out.view(-1, Hkv, tile, group, D).transpose(1, 2).reshape(-1, Hq * D)
        return out.index_select(0, schedule.rows)

    def _scheduled(
        self, block_tables: Tensor, lengths: Tensor, starts: Tensor, cache: Cache, tile: int, values: int
    ) -> Schedule:
        """The schedule of this batch, built again only when its contents changed."""
        geometry = (cache.block_tokens, cache.zero_slot, tile, values)
        tensors = (block_tables, lengths, starts)
        known_geometry, known = self._key
        if (
            self._schedule is None
            or geometry != known_geometry
            or not all(torch.equal(a, b) for a, b in zip(tensors, known, strict=True))
        ):
            self._schedule = build(*tensors, *geometry)
            # Copies: the caller may reuse its tensors for the next step.
            self._key = (geometry, tuple(tensor.clone() for tensor in tensors))
        return self._schedule

    def _mask_table(self, tile: int, group: int) -> Tensor:
        """f32 [KEY_TILE / tile + 1, 1, tile * group, KEY_TILE]: 0 or -inf by the query tile's offset; last: all 0."""
        table = self._masks.get((tile, group))
        if table is None:
            with torch.inference_mode(False):
                offsets = torch.arange(KEY_TILE + tile).view(-1, tile, 1, 1).expand(-1, -1, group, 1)
                hidden = torch.arange(KEY_TILE) > offsets.reshape(-1, 1, tile * group, 1)
                table = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
            self._masks[tile, group] = table
        return table


def _attend(
    task: Task, key_slots: Tensor, masks: Tensor, queries: Tensor, keys: Store, values: Store, out: Tensor
) -> None:
    """Attention of the task's items: queries [I, Hkv, M, D] -> out[first:last]."""
    num_items, Hkv, M, D = queries.shape
    scores = scratch("scores", len(task.items), Hkv, M, KEY_TILE)
    for chunk in task.chunks:
        span = slice(chunk.start, chunk.stop)
        k = keys.read("keys", _slots(task, key_slots, chunk), KEY_TILE)
        q = queries.index_select(0, task.items[span])
        product = scores[span].view(-1, M, KEY_TILE)
        torch.bmm(q.view(-1, M, D), k.view(-1, KEY_TILE, D).transpose(1, 2), out=product)
    torch.add(masks.index_select(0, task.masks), scores, alpha=D**-0.5, out=scores)

    maxima = scores.amax(-1, keepdim=True)
    highest = maxima[:num_items].clone()
    for lo, count in _later_tiles(task):
        torch.maximum(highest[:count], maxima[lo : lo + count], out=highest[:count])
    weights = scores.sub_(highest.index_select(0, task.items)).exp_()

    sums = weights.sum(-1, keepdim=True)
    total = sums[:num_items].clone()
    for lo, count in _later_tiles(task):
        total[:count].add_(sums[lo : lo + count])
    result = torch.zeros(num_items, Hkv, M, D)
    for chunk in task.chunks:
        v = values.read("values", _slots(task, key_slots, chunk), KEY_TILE)
        part = torch.bmm(weights[chunk.start : chunk.stop].view(-1, M, KEY_TILE), v.view(-1, KEY_TILE, D))
        part = part.view(-1, Hkv, M, D)
        for first, last, pair in chunk.tiles:
            offset = pair - chunk.start
            result[first:last].add_(part[offset : offset + last - first])
    torch.div(result, total, out=out[task.first : task.last])


def _slots(task: Task, key_slots: Tensor, chunk: Chunk) -> Tensor:
    return key_slots.index_select(0, task.key_tiles[chunk.start : chunk.stop]).view(-1)


def _later_tiles(task: Task) -> list[tuple[int, int]]:
    """(first pair, number of items) of every key tile but the first."""
    tiles, lo = [], task.counts[0]
    for count in task.counts[1:]:
        tiles.append((lo, count))
        lo += count
    return tiles
