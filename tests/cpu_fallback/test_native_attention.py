"""RoPE, the paged cache and attention of the native wing against float64, and what they must not depend on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from cpu_fallback.native_handles import Cache
from cpu_fallback.native_wing import NativeCpuWing
from tests.cpu_fallback.native_support import every_isa, open_wing

CacheDtype = Literal["bf16", "int8"]
BLOCKS, BLOCK_TOKENS, POSITIONS = 24, 8, 64


@dataclass
class Request:
    """Tokens computed before (start) and in this step (count), on its own blocks."""

    start: int
    count: int
    block_ids: list[int]

    @property
    def positions(self) -> list[int]:
        return list(range(self.start, self.start + self.count))

    @property
    def slots(self) -> list[int]:
        return [self.block_ids[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in self.positions]


def run(wing: NativeCpuWing, cache: Cache, layer: int, requests: list[Request], qkv: Tensor) -> Tensor:
    """Write the tokens of a step and attend; qkv f32 [T, (Hq + 2 Hkv) * D] in the order of the requests."""
    tables = wing.rope_tables(cache.native.head_dim, 10000.0, None, POSITIONS)
    positions = torch.tensor([p for r in requests for p in r.positions])
    slots = torch.tensor([s for r in requests for s in r.slots])
    widest = max(len(r.block_ids) for r in requests)
    block_tables = torch.tensor([r.block_ids + [0] * (widest - len(r.block_ids)) for r in requests], dtype=torch.int32)
    lengths = torch.tensor([r.start + r.count for r in requests], dtype=torch.int32)
    starts = torch.tensor([0, *(r.count for r in requests)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    q = wing.rope_write_kv(qkv, positions, tables, cache, layer, slots)
    return wing.paged_attention(q, cache, layer, block_tables, lengths, starts)


def rope_by_definition(x: Tensor, positions: Tensor) -> Tensor:
    """f64 [T, heads, D], the angles in f32."""
    half = x.shape[-1] // 2
    inverse = 1.0 / 10000.0 ** (torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half))
    angles = torch.outer(positions.float(), inverse).double()[:, None, :]
    a, b = torch.split(x.double(), half, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


def as_stored(x: Tensor, dtype: CacheDtype) -> Tensor:
    """f64 [T, heads, D] as the cache gives it back."""
    x = x.float()
    if dtype == "bf16":
        return x.to(torch.bfloat16).double()
    a = x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    return ((x * (127 / a)).round().clamp(-127, 127) * (a / 127)).double()


def attention_by_definition(qkv: Tensor, heads: int, kv_heads: int, head_dim: int, dtype: CacheDtype) -> Tensor:
    """One request from position 0: f64 [T, heads * D]."""
    q, k, v = torch.split(qkv.view(len(qkv), -1, head_dim), [heads, kv_heads, kv_heads], 1)
    positions = torch.arange(len(qkv))
    q, k = rope_by_definition(q, positions), as_stored(rope_by_definition(k, positions), dtype)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, as_stored(v.double(), dtype)))
    scores = torch.einsum("qhd,khd->hqk", q, k) / head_dim**0.5
    scores.masked_fill_(positions[None, :] > positions[:, None], -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(qkv), -1)


def tokens_of(qkv: Tensor, requests: list[Request]) -> Tensor:
    return torch.cat([qkv[r.start : r.start + r.count] for r in requests])


@every_isa
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 1, 16), (6, 2, 20), (3, 3, 100), (20, 5, 8), (40, 1, 6)]
)
def test_attention_is_within_rounding_of_float64(
    isa: str, dtype: CacheDtype, heads: int, kv_heads: int, head_dim: int
) -> None:
    wing = open_wing(isa)
    qkv = torch.randn(45, (heads + 2 * kv_heads) * head_dim, generator=torch.Generator().manual_seed(heads))
    cache = wing.new_cache(2, BLOCKS, BLOCK_TOKENS, kv_heads, head_dim, dtype)
    got = run(wing, cache, 1, [Request(0, 45, [5, 0, 7, 3, 2, 9])], qkv)
    expected = attention_by_definition(qkv, heads, kv_heads, head_dim, dtype)
    # A bf16 rounding that falls the other way in f32 than in f64 moves one key by 2^-9 of itself; int8 by one code.
    assert (got - expected).abs().max() < 2e-2
    assert (got - expected).square().mean().sqrt() < 1e-3


@every_isa
def test_rotated_queries_are_within_rounding_of_float64(isa: str) -> None:
    wing = open_wing(isa)
    qkv = torch.randn(5, 4 * 36, generator=torch.Generator().manual_seed(1))
    cache = wing.new_cache(1, 4, BLOCK_TOKENS, 1, 36, "bf16")
    positions = torch.tensor([0, 1, 17, 30, 63])
    tables = wing.rope_tables(36, 10000.0, None, POSITIONS)
    q = wing.rope_write_kv(qkv, positions, tables, cache, 0, torch.arange(5))
    assert (q - rope_by_definition(qkv[:, :72].view(5, 2, 36), positions)).abs().max() < 2e-6


@every_isa
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_chunks_company_blocks_and_threads_do_not_change_a_bit(isa: str, dtype: CacheDtype) -> None:
    heads, kv_heads, head_dim = 6, 2, 20
    generator = torch.Generator().manual_seed(2)
    first, second, third = (torch.randn(41, 10 * head_dim, generator=generator) for _ in range(3))
    wing = open_wing(isa)
    blocks, others = [5, 0, 7, 3, 2, 9], [[1, 4, 6, 8, 10, 11], [12, 13, 14, 15, 16, 17]]

    def whole(qkv: Tensor, ids: list[int]) -> Tensor:
        cache = wing.new_cache(1, BLOCKS, BLOCK_TOKENS, kv_heads, head_dim, dtype)
        return run(wing, cache, 0, [Request(0, 41, ids)], qkv)

    alone = [whole(first, blocks), whole(second, others[0]), whole(third, others[1])]
    for threads, cuts in ((1, (1, 2, 30, 41)), (2, (7, 14, 40, 41)), (3, (8, 16, 24, 41))):
        wing.set_threads(threads)
        assert torch.equal(whole(first, blocks), alone[0])
        assert torch.equal(whole(first, others[1]), alone[0])
        cache, start = wing.new_cache(1, BLOCKS, BLOCK_TOKENS, kv_heads, head_dim, dtype), 0
        parts: list[list[Tensor]] = [[], [], []]
        for cut in cuts:
            requests = [Request(start, cut - start, ids) for ids in (blocks, *others)]
            qkv = torch.cat([x[start:cut] for x in (first, second, third)])
            for part, out in zip(parts, torch.split(run(wing, cache, 0, requests, qkv), cut - start), strict=True):
                part.append(out)
            start = cut
        for part, expected in zip(parts, alone, strict=True):
            assert torch.equal(torch.cat(part), expected)
    assert heads == alone[0].shape[1] // head_dim


@every_isa
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_nan_in_every_slot_a_request_may_not_see_changes_nothing(isa: str, dtype: CacheDtype) -> None:
    wing = open_wing(isa)
    qkv = torch.randn(21, 10 * 20, generator=torch.Generator().manual_seed(3))
    request = [Request(0, 21, [5, 0, 7])]
    clean = run(wing, wing.new_cache(1, BLOCKS, BLOCK_TOKENS, 2, 20, dtype), 0, request, qkv)
    cache = wing.new_cache(1, BLOCKS, BLOCK_TOKENS, 2, 20, dtype)
    ctypes.memset(cache.memory.address, 0xFF, cache.memory.num_bytes)  # NaN as bf16 and as the f32 scales of int8
    assert torch.equal(run(wing, cache, 0, request, qkv), clean)


@every_isa
def test_a_request_gone_bad_leaves_the_others_alone_and_its_blocks_can_be_zeroed(isa: str) -> None:
    wing = open_wing(isa)
    qkv = torch.randn(26, 10 * 20, generator=torch.Generator().manual_seed(4))
    requests = [Request(0, 13, [5, 0]), Request(0, 13, [7, 3])]
    clean = run(wing, wing.new_cache(1, BLOCKS, BLOCK_TOKENS, 2, 20, "bf16"), 0, requests, qkv)
    cache, bad = wing.new_cache(1, BLOCKS, BLOCK_TOKENS, 2, 20, "bf16"), qkv.clone()
    bad[4] = torch.nan
    out = run(wing, cache, 0, requests, bad)
    assert out[4:13].isnan().all()
    assert torch.equal(out[:4], clean[:4])
    assert torch.equal(out[13:], clean[13:])
    wing.zero_blocks(cache, [5, 0])
    assert not any(byte for block in (5, 0) for byte in block_bytes(cache, block))
    assert any(block_bytes(cache, 7))
    assert torch.equal(run(wing, cache, 0, requests, qkv), clean)


def block_bytes(cache: Cache, block: int) -> bytes:
    size = cache.memory.num_bytes // BLOCKS
    return ctypes.string_at(cache.memory.address + block * size, size)


def test_a_cache_takes_two_bytes_a_value_and_a_scale_a_head_only_for_int8() -> None:
    wing = open_wing("portable")
    values = 3 * 4 * 32 * 5 * 128 * 2
    assert wing.memory_bytes(wing.new_cache(3, 4, 32, 5, 128, "bf16")) == values * 2
    assert wing.memory_bytes(wing.new_cache(3, 4, 32, 5, 128, "int8")) == values + values // 128 * 4


def test_indices_outside_the_cache_and_the_tables_are_refused() -> None:
    wing = open_wing("portable")
    cache, tables = wing.new_cache(1, 2, 8, 1, 4, "bf16"), wing.rope_tables(4, 10000.0, None, 16)
    qkv, one = torch.zeros(1, 12), torch.tensor([1])
    for name, positions, layer, slots in (
        ("position 16", torch.tensor([16]), 0, one),
        ("slot 16", one, 0, torch.tensor([16])),
        ("slot -1", one, 0, torch.tensor([-1])),
        ("layer", one, 1, one),
    ):
        with pytest.raises(ValueError, match=name):
            wing.rope_write_kv(qkv, positions, tables, cache, layer, slots)

    def attend(block_tables: list[list[int]], lengths: list[int], starts: list[int]) -> None:
        int32 = [torch.tensor(x, dtype=torch.int32) for x in (block_tables, lengths, starts)]
        wing.paged_attention(torch.zeros(1, 1, 4), cache, 0, *int32)

    attend([[1]], [8], [0, 1])
    for words, arguments in (
        ("block id", ([[2]], [8], [0, 1])),
        ("beyond its block table", ([[1]], [9], [0, 1])),
        ("starts must run", ([[1]], [8], [0, 0])),
        ("lengths must cover", ([[1]], [0], [0, 1])),
    ):
        with pytest.raises(ValueError, match=words):
            attend(*arguments)
    with pytest.raises(ValueError, match="block 2"):
        wing.zero_blocks(cache, [0, 2])


def test_shapes_that_do_not_go_together_are_refused_with_the_numbers() -> None:
    wing = open_wing("portable")
    cache, tables = wing.new_cache(1, 2, 8, 2, 4, "bf16"), wing.rope_tables(4, 10000.0, None, 16)
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="18 columns does not go with 2 key-value heads of 4"):
        wing.rope_write_kv(torch.zeros(1, 18), one, tables, cache, 0, one)
    with pytest.raises(ValueError, match="3 heads are no multiple of 2"):
        wing.paged_attention(
            torch.zeros(1, 3, 4), cache, 0, torch.zeros(1, 1, dtype=torch.int32), one.int(), torch.tensor([0, 1]).int()
        )
    with pytest.raises(ValueError, match="fp8"):
        wing.new_cache(1, 2, 8, 2, 4, "fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head_dim must be"):
        wing.rope_tables(5, 10000.0, None, 4)
    with pytest.raises(ValueError, match="scaling"):
        wing.rope_tables(4, 10000.0, {"rope_type": "llama3"}, 4)
