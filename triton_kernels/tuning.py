"""Which tile each kernel gets: a table of measured rows where there is one, else a heuristic. Nothing is timed here.

The table is `tuning.json` beside this file, if present: {device name: {key: {field: value}}} with the keys of
`linear_key`, `dense_key`, ... and LAUNCH_KEY, written by `tools/tune_gpu.py` from measurements. No choice made here
changes a result of the ternary linears (integer sums). The attention shape does change bits, so it is one shape per
head size and device, never a function of the batch. The heuristics follow compiled code, not timings; where an H200's
rows differ from them, they were measured better there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from triton_kernels.device import Device

TABLE = Path(__file__).with_name("tuning.json")


LAUNCH_KEY = "launch"
PREFILL_BUCKETS = (128, 256, 512, 2048)
OWN_ADDRESSES, COPY_ENGINE = 1, 2
DENSE_FROM = 16
"""Tokens from which int8 weights, where there are any, are taken without a measured row. A GEMV is never dense."""
GATED_DENSE_FROM = 128


class Regime(StrEnum):
    """The three forms of the ternary linear."""

    GEMV = "gemv"
    SMALL = "small"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class LinearTile:
    """What a program takes: packed rows (4 outputs each), tokens, bytes of K a turn; split_k programs share K."""

    packed: int
    tokens: int
    depth: int
    split_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class DenseTile:
    """What a program takes of int8 weights: rows (one output each), tokens, bytes of K a turn.

    split_k programs share K. fetch is OWN_ADDRESSES, or COPY_ENGINE on hardware that has one (compute capability 9.0).
    """

    rows: int
    tokens: int
    depth: int
    split_k: int
    num_warps: int
    num_stages: int
    fetch: int


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """What a program takes: rows (query tokens x heads of a group), KV tokens a turn and a split."""

    rows: int
    keys: int
    split: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Launching:
    """How many kernels of a step may be under way at once: 1, or 2 where each is launched before the last has ended."""

    in_flight: int


KINDS: dict[str, type[LinearTile] | type[DenseTile] | type[AttentionTile] | type[Launching]] = {
    "linear": LinearTile,
    "gated": LinearTile,
    "dense": DenseTile,
    "densegated": DenseTile,
    "attention": AttentionTile,
    LAUNCH_KEY: Launching,
}


def regime(num_tokens: int, dp4a: bool) -> Regime:
    """Which form of the ternary linear serves this many tokens."""
    if num_tokens <= 2 and dp4a:
        return Regime.GEMV
    return Regime.SMALL if num_tokens <= 64 else Regime.PREFILL


def linear_tile(num_tokens: int, num_packed: int, padded_k: int, device: Device) -> LinearTile:
    """The tile of one ternary linear. Except in a GEMV, depth * split_k divides padded_k (a multiple of 128)."""
    form = regime(num_tokens, device.dp4a)
    bucket = token_bucket(num_tokens)
    row = device.tuned.get(linear_key(form, bucket, num_packed, padded_k))
    if row is not None:
        return LinearTile(**row)
    if form is Regime.GEMV:
        return gemv_tile(num_packed, padded_k, device)
    if form is Regime.SMALL:
        return small_tile(bucket, num_packed, padded_k, device)
    # 128 tokens spill on sm_90 (56 bytes) and 64 tokens spill on sm_80 (24 bytes): ptxas of Triton 3.6.0
    return LinearTile(64, 64 if device.wgmma else 128, depth=128, split_k=1, num_warps=8, num_stages=3)


def token_bucket(num_tokens: int) -> int:
    """The number of tokens that a measured row stands for: a power of two, past 64 the next of PREFILL_BUCKETS."""
    if num_tokens <= 64:
        return power_of_two(num_tokens)
    return next((bucket for bucket in PREFILL_BUCKETS if num_tokens <= bucket), PREFILL_BUCKETS[-1])


def gated_tile(num_tokens: int, num_packed: int, padded_k: int, device: Device) -> LinearTile | None:
    """The tile of gate and up with the gate in the epilogue, or None: only where a measured row says that it pays."""
    row = device.tuned.get(gated_key(token_bucket(num_tokens), num_packed, padded_k))
    return None if row is None else LinearTile(**row)


def dense_tile(num_tokens: int, num_outputs: int, padded_k: int, device: Device) -> DenseTile | None:
    """The tile on int8 weights, or None where packed ones serve better: by a measured row, else from DENSE_FROM on."""
    form, bucket = regime(num_tokens, device.dp4a), token_bucket(num_tokens)
    if form is Regime.GEMV:
        return None
    row = device.tuned.get(dense_key(bucket, num_outputs, padded_k))
    if row is not None:
        return DenseTile(**row)
    if bucket < DENSE_FROM or linear_key(form, bucket, num_outputs // 4, padded_k) in device.tuned:
        return None
    return plain_dense_tile(bucket, num_outputs, padded_k, device)


def plain_dense_tile(bucket: int, num_outputs: int, padded_k: int, device: Device) -> DenseTile:
    """As tall as one warp group's product, or two where that leaves a program for every processor.

    K is split where programs are few, and stages are as many as hold some 96 KB on their way.
    """
    fetch = COPY_ENGINE if device.wgmma else OWN_ADDRESSES
    if bucket >= 512:
        # 256 tokens spill on sm_80, which has no accumulators outside a warp's own product (Triton 3.6.0)
        return DenseTile(128, 256 if device.wgmma else 128, 128, 1, num_warps=8, num_stages=3, fetch=fetch)
    tokens = min(128, max(16, bucket))
    columns = -(-bucket // tokens)
    rows = 128 if tokens >= 64 and -(-num_outputs // 128) * columns >= device.num_processors else 64
    programs, turns = -(-num_outputs // rows) * columns, padded_k // 128
    split_k = max(
        (parts for parts in (2, 3, 4, 5, 6) if turns % parts == 0 and programs * parts <= 2 * device.num_processors),
        default=1,
    )
    stages = min(6, max(3, (96 << 10) // ((rows + tokens) * 128)))
    return DenseTile(rows, tokens, 128, split_k, num_warps=8 if rows == 128 else 4, num_stages=stages, fetch=fetch)


def dense_gated_tile(num_tokens: int, num_outputs: int, padded_k: int, device: Device) -> DenseTile | None:
    """The tile of gate and up on int8 weights, multiplied in the epilogue: by a measured row, else from many tokens."""
    bucket = token_bucket(num_tokens)
    row = device.tuned.get(dense_gated_key(bucket, num_outputs, padded_k))
    if row is not None:
        return DenseTile(**row)
    if num_tokens < GATED_DENSE_FROM:
        return None
    fetch = COPY_ENGINE if device.wgmma else OWN_ADDRESSES
    return DenseTile(128, 128, 128, 1, num_warps=8, num_stages=4 if device.wgmma else 3, fetch=fetch)


def overlaps_launches(tuned: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether kernels are launched before their predecessors have ended: only where that measured better."""
    row = tuned.get(LAUNCH_KEY)
    return row is not None and Launching(**row).in_flight > 1


def gemv_tile(num_packed: int, padded_k: int, device: Device) -> LinearTile:
    """One program owns all of K.

    Tiles of four rows by 512 bytes are one 16-byte load a thread; short rows of K are all in flight at once. ptxas
    keeps only two such tiles in flight in a long row, so there the tile is four times as deep.
    """
    packed = 8 if num_packed // 8 >= 2 * device.num_processors else 4
    depth = 512 if padded_k <= 8 * 512 else 2048
    return LinearTile(packed, tokens=1, depth=depth, split_k=1, num_warps=4, num_stages=1)


def small_tile(bucket: int, num_packed: int, padded_k: int, device: Device) -> LinearTile:
    """Sixteen packed rows a program, the narrowest tile of tensor cores. K is split where few programs go deep."""
    depth = largest_divisor(padded_k, 256)
    programs = -(-num_packed // 16)
    few_and_deep = 2 * programs <= device.num_processors and padded_k >= 4096
    split_k = max(parts for parts in (1, 2, 3, 4) if padded_k // depth % parts == 0) if few_and_deep else 1
    return LinearTile(16, max(16, bucket), depth, split_k, num_warps=4, num_stages=3)


def attention_tile(head_dim: int, group: int, device: Device) -> AttentionTile:
    """One shape for prefill and decode. `group` is the number of query heads that share a KV head."""
    row = device.tuned.get(attention_key(head_dim, group))
    if row is not None:
        return AttentionTile(**row)
    # 32 keys are one block of the cache: one table lookup a tile. 64 keys or 64 rows spill on sm_80, and
    # 32 rows of a head of 256 (Triton 3.6.0). Two stages a tile: it is looked up before it is fetched, so five keep one
    # on its way while another is used. With three, 2,048 tokens took 354 us on an H200 (2026-11-26).
    rows = max(32 if head_dim <= 128 else 16, power_of_two(group))
    return AttentionTile(rows, keys=32, split=128, num_warps=4, num_stages=5)


def attention_rows(tile: AttentionTile, group: int, single: bool, device: Device) -> int:
    """Rows of a program's tile: fewer where each block is a `single` token, if that moves no bit.

    On NVIDIA's hardware tiles below 64 rows are made of products of 16, each row by itself, and the sums over keys
    lie in the same order (tests/triton_kernels/test_offline.py); decoding takes 375 instructions a turn instead of 601
    then. Tiles of 64 rows may be products of warp groups, and AMD's products change with the tile.
    """
    fewer = max(16, power_of_two(group))
    return min(fewer, tile.rows) if single and device.dp4a and tile.rows < 64 else tile.rows


def linear_key(form: Regime, bucket: int, num_packed: int, padded_k: int) -> str:
    return f"linear {form} T{bucket} P{num_packed} K{padded_k}"


def gated_key(bucket: int, num_packed: int, padded_k: int) -> str:
    return f"gated T{bucket} P{num_packed} K{padded_k}"


def dense_key(bucket: int, num_outputs: int, padded_k: int) -> str:
    return f"dense T{bucket} N{num_outputs} K{padded_k}"


def dense_gated_key(bucket: int, num_outputs: int, padded_k: int) -> str:
    return f"densegated T{bucket} N{num_outputs} K{padded_k}"


def attention_key(head_dim: int, group: int) -> str:
    return f"attention D{head_dim} G{group}"


@cache
def table() -> dict[str, dict[str, dict[str, int]]]:
    """The measured rows. A malformed table is our own fault and raises ValueError with its place."""
    return read_table(TABLE) if TABLE.exists() else {}


def read_table(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    read: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text())
    for device, rows in read.items():
        for key, row in rows.items():
            kind = KINDS.get(key.split(" ")[0])
            if kind is None:
                raise ValueError(f"{path.name}: {device}: {key}: must begin with {', '.join(KINDS)}")
            wanted = {field.name for field in fields(kind)}
            if set(row) != wanted or not all(isinstance(value, int) and value > 0 for value in row.values()):
                raise ValueError(f"{path.name}: {device}: {key}: needs positive integers {sorted(wanted)}, has {row}")
    return read


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def largest_divisor(n: int, limit: int) -> int:
    """The largest power of two up to `limit` that divides n."""
    return min(limit, n & -n)
