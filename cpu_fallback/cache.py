"""The paged KV cache of the CPU wing: one row per slot, bf16 or int8 with a scale per token and head.

One more slot than the pool has, at the end and always zero: reads of keys beyond a row's length go there, so that
what another request left behind (NaN, say) is never touched. Knows no request; a slot is block * block_tokens + offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cpu_fallback.pointwise import MIN_ABSMAX
from cpu_fallback.threads import scratch


@dataclass(frozen=True, slots=True)
class Store:
    """The keys or the values of one layer: rows [slots + 1, Hkv, D], with scales f32 [slots + 1, Hkv, 1] if int8."""

    rows: Tensor
    scales: Tensor | None

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Round x f32 [T, Hkv, D] to the store's dtype and put it at slots [T]."""
        if self.scales is None:
            self.rows.index_copy_(0, slots, x.to(self.rows.dtype))
            return
        absmax = x.abs().amax(-1, keepdim=True).clamp_min_(MIN_ABSMAX)
        codes = (x * torch.full_like(absmax, 127.0).div_(absmax)).round_().nan_to_num_(nan=0.0)
        self.rows.index_copy_(0, slots, codes.to(torch.int8))
        self.scales.index_copy_(0, slots, absmax.div_(127.0))

    def read(self, name: str, slots: Tensor, tokens: int) -> Tensor:
        """slots [n * tokens] -> f32 [n, Hkv, tokens, D] in the scratch buffer `name`."""
        heads, D = self.rows.shape[1:]
        out = scratch(name, len(slots) // tokens, heads, tokens, D)
        out.copy_(self.rows.index_select(0, slots).view(-1, tokens, heads, D).transpose(1, 2))
        if self.scales is not None:
            out.mul_(self.scales.index_select(0, slots).view(-1, tokens, heads, 1).transpose(1, 2))
        return out

    def zero_block(self, first: int, last: int) -> None:
        """Zero slots first .. last - 1."""
        self.rows[first:last] = 0
        if self.scales is not None:
            self.scales[first:last] = 0


@dataclass(frozen=True, slots=True)
class Cache:
    """keys and values per layer; num_blocks * block_tokens slots and the zero slot after them."""

    keys: tuple[Store, ...]
    values: tuple[Store, ...]
    num_blocks: int
    block_tokens: int

    @property
    def zero_slot(self) -> int:
        """The slot that holds zeros and is never written."""
        return self.num_blocks * self.block_tokens


def new_cache(
    num_layers: int, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: str
) -> Cache:
    """A zeroed cache; its pages become resident as they are first written. Raises ValueError for another dtype."""
    if dtype not in ("bf16", "int8"):
        raise ValueError(f"the CPU wing keeps its KV cache in bf16 or int8, not {dtype!r}")
    num_slots = num_blocks * block_tokens + 1

    def store() -> Store:
        if dtype == "bf16":
            return Store(_untouched_zeros(torch.bfloat16, num_slots, num_kv_heads, head_dim), None)
        rows = _untouched_zeros(torch.int8, num_slots, num_kv_heads, head_dim)
        return Store(rows, _untouched_zeros(torch.float32, num_slots, num_kv_heads, 1))

    # Not inference tensors, whatever the caller is in: they are written to for as long as the model is served.
    with torch.inference_mode(False):
        keys, values = (tuple(store() for _ in range(num_layers)) for _ in range(2))
    return Cache(keys, values, num_blocks, block_tokens)


def _untouched_zeros(dtype: torch.dtype, *shape: int) -> Tensor:
    """Zeros that cost no memory until written: numpy asks the system for zero pages, torch fills its own."""
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def zero_blocks(cache: Cache, block_ids: Sequence[int]) -> None:
    """Zero these blocks in every layer. Raises ValueError for an id outside the pool."""
    for block in block_ids:
        if not 0 <= block < cache.num_blocks:
            raise ValueError(f"block {block} is outside the pool of {cache.num_blocks} blocks")
        for store in (*cache.keys, *cache.values):
            store.zero_block(block * cache.block_tokens, (block + 1) * cache.block_tokens)
