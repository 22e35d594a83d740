"""The paged KV cache and the kernel that fills it: RoPE on q and k, k and v to their slots.

Pages are [block, kv head, token, head_dim], so one head's tokens of a block are contiguous. Stored as bf16, or as int8
with one fp32 scale per token and head. Both are zeroed when made: a stale NaN would leak through 0 * NaN.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.bf16 import store_bf16
from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pointwise import magnitude, to_codes
from triton_kernels.tuning import power_of_two

ROPE_HEADS = 8
"""Heads that one program turns: with one for each, 2,048 tokens took 78 us on an H200 (2026-11-26)."""


@dataclass(frozen=True, slots=True)
class Cache:
    """keys, values: bf16 or int8 [L, blocks, Hkv, block_tokens, D]; their scales f32 [L, blocks, Hkv, block_tokens].

    With bf16 the scales are empty.
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor
    value_scale: Tensor

    @property
    def is_int8(self) -> bool:
        return self.keys.dtype == torch.int8

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.key_scale, self.value_scale


@dataclass(frozen=True, slots=True)
class RopeTables:
    """fp32 cosines and sines [num_positions, D / 2]."""

    cos: Tensor
    sin: Tensor


def rope_tables(head_dim: int, theta: float, num_positions: int, device: Device) -> RopeTables:
    """Tables of plain RoPE for positions 0 .. num_positions - 1, with fp32 angles."""
    if head_dim % 2:
        raise ValueError(f"RoPE needs an even head size, not {head_dim}")
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * inverse[None, :]
    return RopeTables(angles.cos().to(device.torch_device), angles.sin().to(device.torch_device))


def new_cache(
    num_layers: int, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: str, device: Device
) -> Cache:
    """A zeroed cache of num_blocks * block_tokens slots per layer."""
    if dtype not in ("bf16", "int8"):
        raise ValueError(f"the KV cache is bf16 or int8, not {dtype!r}")
    stored = torch.bfloat16 if dtype == "bf16" else torch.int8
    pages = (num_layers, num_blocks, num_kv_heads, block_tokens)
    scales = pages if dtype == "int8" else (num_layers, 0, num_kv_heads, block_tokens)
    return Cache(
        keys=device.zeros(*pages, head_dim, dtype=stored),
        values=device.zeros(*pages, head_dim, dtype=stored),
        key_scale=device.zeros(*scales, dtype=torch.float32),
        value_scale=device.zeros(*scales, dtype=torch.float32),
    )


def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: str) -> int:
    """What one token takes in a cache of `new_cache`."""
    return 2 * num_layers * num_kv_heads * (2 * head_dim if dtype == "bf16" else head_dim + 4)


def zero_blocks(cache: Cache, block_ids: Sequence[int]) -> None:
    """Zero these blocks in every layer."""
    ids = torch.tensor(list(block_ids), dtype=torch.int64, device=cache.keys.device)
    for tensor in cache.tensors:
        if tensor.numel():
            tensor.index_fill_(1, ids, 0)


@triton.jit
def store_heads(page, scale, at, i, wanted, x, y, HALF: tl.constexpr, INT8: tl.constexpr, BF16: tl.constexpr):
    """Stores the two halves x and y [heads, HALF] of the wanted keys or values at their slots `at` of a layer's pages.

    `wanted` [heads, 1]; what is past HALF is zero.
    """
    to = page + at[:, None] * (2 * HALF) + i[None, :]
    mask = wanted & (i < HALF)[None, :]
    if INT8:
        largest = tl.maximum(tl.max(tl.maximum(magnitude(x), magnitude(y)), axis=1), 1e-5)
        tl.store(to, to_codes(x, largest[:, None]), mask=mask)
        tl.store(to + HALF, to_codes(y, largest[:, None]), mask=mask)
        tl.store((scale + at)[:, None], tl.math.div_rn(largest, 127.0)[:, None], mask=wanted)
    else:
        store_bf16(to, x, mask, BF16)
        store_bf16(to + HALF, y, mask, BF16)


@triton.jit
def rope_kernel(
    q,  # f32 [T, HQ, 2 * HALF]
    keys,  # bf16 or int8 [blocks, HKV, BLOCK_TOKENS, 2 * HALF] of one layer
    values,
    key_scale,  # f32 [blocks, HKV, BLOCK_TOKENS]
    value_scale,
    qkv,  # f32 [T, (HQ + 2 * HKV) * 2 * HALF]
    positions,  # int64 [T]
    slots,  # int64 [T]; a negative slot is not written
    cos,  # f32 [positions, HALF]
    sin,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    INT8: tl.constexpr,
    BF16: tl.constexpr,
    PDL: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, BLOCK)
    inside = (head < HQ + 2 * HKV)[:, None] & (i < HALF)[None, :]
    # where a token is was known before the kernel that this one waits for
    angle = tl.load(positions + t) * HALF + i
    c = tl.load(cos + angle, mask=i < HALF, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=i < HALF, other=0.0)[None, :]
    slot = tl.load(slots + t)
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    source = qkv + (t * (HQ + 2 * HKV) + head[:, None]) * (2 * HALF) + i[None, :]
    x = tl.load(source, mask=inside, other=0.0)
    y = tl.load(source + HALF, mask=inside, other=0.0)
    turned_x = x * c - y * s
    turned_y = y * c + x * s
    to = q + (t * HQ + head[:, None]) * (2 * HALF) + i[None, :]
    is_query = inside & (head < HQ)[:, None]
    tl.store(to, turned_x, mask=is_query)
    tl.store(to + HALF, turned_y, mask=is_query)
    if (slot >= 0) & (tl.program_id(1) * HEADS + HEADS > HQ):
        line = (slot // BLOCK_TOKENS) * HKV
        key = head - HQ
        at = (line + key) * BLOCK_TOKENS + slot % BLOCK_TOKENS
        is_key = ((key >= 0) & (key < HKV))[:, None]
        store_heads(keys, key_scale, at, i, is_key, turned_x, turned_y, HALF, INT8, BF16)
        is_value = ((key >= HKV) & (key < 2 * HKV))[:, None]
        store_heads(values, value_scale, at - HKV * BLOCK_TOKENS, i, is_value, x, y, HALF, INT8, BF16)


def rope_write_kv(
    qkv: Tensor, positions: Tensor, tables: RopeTables, cache: Cache, layer: int, slots: Tensor, device: Device
) -> Tensor:
    """qkv f32 [T, (Hq + 2 Hkv) * D] in the order q | k | v -> roped q f32 [T, Hq, D]; k and v go to their slots.

    A negative slot writes nothing (a padding row). Positions are trusted to be inside the tables.
    """
    num_tokens, width = qkv.shape
    _, _, num_kv_heads, block_tokens, head_dim = cache.keys.shape
    num_heads = width // head_dim - 2 * num_kv_heads
    if width % head_dim or num_heads <= 0 or num_heads % num_kv_heads:
        raise ValueError(
            f"qkv has {width} columns, which is no multiple of {num_kv_heads} query heads and twice {num_kv_heads} "
            f"key and value heads of {head_dim}"
        )
    if tables.cos.shape[1] * 2 != head_dim:
        raise ValueError(f"the RoPE tables are for heads of {2 * tables.cos.shape[1]}, the cache has {head_dim}")
    q = device.empty(num_tokens, num_heads, head_dim, dtype=torch.float32)
    if num_tokens:
        device.launch(
            rope_kernel,
            (num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, ROPE_HEADS)),
            q=q,
            keys=cache.keys[layer],
            values=cache.values[layer],
            key_scale=cache.key_scale[layer],
            value_scale=cache.value_scale[layer],
            qkv=qkv,
            positions=positions,
            slots=slots,
            cos=tables.cos,
            sin=tables.sin,
            HQ=num_heads,
            HKV=num_kv_heads,
            HALF=head_dim // 2,
            BLOCK=power_of_two(head_dim // 2),
            HEADS=ROPE_HEADS,
            BLOCK_TOKENS=block_tokens,
            INT8=cache.is_int8,
            BF16=device.bf16,
            num_warps=4,
        )
    return q
