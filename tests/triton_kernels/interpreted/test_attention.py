from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import oracle
from triton_kernels.attention import attend, paged_attention, split_programs
from triton_kernels.cache import Cache, new_cache, rope_tables, rope_write_kv, zero_blocks
from triton_kernels.device import open_device
from triton_kernels.query_blocks import query_blocks
from triton_kernels.tuning import AttentionTile

CPU = open_device(torch.device("cpu"))
RNG = np.random.default_rng(6)
BLOCK_TOKENS = 8


def random(*shape: int) -> Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


class Paged:
    """Rows of given lengths with random keys and values in shuffled blocks of a one-layer cache."""

    def __init__(self, lengths: list[int], num_kv_heads: int, head_dim: int, dtype: str = "bf16") -> None:
        self.lengths, self.head_dim, self.num_kv_heads = lengths, head_dim, num_kv_heads
        per_row = [-(-n // BLOCK_TOKENS) for n in lengths]
        order = RNG.permutation(sum(per_row) + 3)
        self.tables = np.zeros((len(lengths), max(per_row)), np.int32)
        self.cache = new_cache(2, len(order), BLOCK_TOKENS, num_kv_heads, head_dim, dtype, CPU)
        self.keys: list[oracle.F32] = []
        self.values: list[oracle.F32] = []
        used = 0
        for row, (n, count) in enumerate(zip(lengths, per_row, strict=True)):
            self.tables[row, :count] = order[used : used + count]
            used += count
            self.keys.append(self.fill(row, n, self.cache.keys, self.cache.key_scale))
            self.values.append(self.fill(row, n, self.cache.values, self.cache.value_scale))

    def slots(self, row: int, n: int) -> tuple[oracle.I64, oracle.I64]:
        at = np.arange(n)
        return self.tables[row, at // BLOCK_TOKENS].astype(np.int64), at % BLOCK_TOKENS

    def fill(self, row: int, n: int, pages: Tensor, scales: Tensor) -> oracle.F32:
        """Random values [n, Hkv, D] written to layer 1; returns them as the cache holds them."""
        blocks, offsets = self.slots(row, n)
        if pages.dtype == torch.bfloat16:
            held = random(n, self.num_kv_heads, self.head_dim).to(torch.bfloat16)
            pages[1, blocks, :, offsets] = held
            return held.float().numpy()
        codes = torch.from_numpy(RNG.integers(-127, 128, (n, self.num_kv_heads, self.head_dim)).astype(np.int8))
        scale = random(n, self.num_kv_heads).abs() / 64
        pages[1, blocks, :, offsets] = codes
        scales[1, blocks, :, offsets] = scale
        return (codes.float() * scale[..., None]).numpy()

    def poison(self) -> None:
        """NaN in every slot that belongs to no row, and in the other layer."""
        used = torch.zeros(self.cache.keys.shape[1], BLOCK_TOKENS, dtype=torch.bool)
        for row, n in enumerate(self.lengths):
            used[self.slots(row, n)] = True
        for tensor in (self.cache.keys, self.cache.values):
            tensor[0] = torch.nan
            tensor[1].transpose(1, 2)[~used] = torch.nan

    def attend(self, q: Tensor, counts: list[int], tile: AttentionTile | None = None, programs: int = 1) -> Tensor:
        starts = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
        tables, lengths = torch.from_numpy(self.tables), torch.tensor(self.lengths, dtype=torch.int32)
        blocks = query_blocks(starts.tolist(), q.shape[1], self.num_kv_heads, self.head_dim, CPU)
        if tile is None:
            return paged_attention(q, self.cache, 1, tables, lengths, starts, blocks, CPU)
        out = torch.full((q.shape[0], q.shape[1] * self.head_dim), torch.nan)
        splits = -(-tables.shape[1] * BLOCK_TOKENS // tile.split)
        attend(out, q, self.cache, 1, tables, lengths, starts, blocks, tile, splits, programs, CPU)
        assert not blocks.arrived.any(), "counters are not zero again"
        return out


def wanted(paged: Paged, q: Tensor, counts: list[int]) -> oracle.F64:
    parts = np.split(q.numpy(), np.cumsum(counts)[:-1])
    return np.concatenate([oracle.attention(*row) for row in zip(parts, paged.keys, paged.values, strict=True)])


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 1, 16), (6, 2, 20), (2, 2, 64), (5, 1, 128)])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_ragged_rows_attend_like_the_oracle(num_heads: int, num_kv_heads: int, head_dim: int, dtype: str) -> None:
    lengths, counts = [1, 150, 33], [1, 1, 12]
    paged = Paged(lengths, num_kv_heads, head_dim, dtype)
    q = random(sum(counts), num_heads, head_dim)
    got = paged.attend(q, counts)
    # what is left of q and of the probabilities below their 16 bits
    np.testing.assert_allclose(got.numpy(), wanted(paged, q, counts), rtol=0, atol=3e-5)


TILE = AttentionTile(rows=32, keys=16, split=32, num_warps=4, num_stages=1)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_splits_over_programs_change_no_bit(dtype: str) -> None:
    paged, counts = Paged([100, 5], 1, 16, dtype), [9, 2]
    q = random(11, 4, 16)
    alone = paged.attend(q, counts, TILE)
    np.testing.assert_allclose(alone.numpy(), wanted(paged, q, counts), rtol=0, atol=3e-5)
    for programs in (2, 4, 5):
        assert torch.equal(paged.attend(q, counts, TILE, programs), alone), programs


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fewer_rows_in_a_tile_change_no_bit(dtype: str) -> None:
    paged, counts = Paged([100, 5, 40], 1, 16, dtype), [1, 1, 1]
    for num_heads in (1, 4, 5):
        q = random(3, num_heads, 16)
        alone = paged.attend(q, counts, TILE)
        np.testing.assert_allclose(alone.numpy(), wanted(paged, q, counts), rtol=0, atol=3e-5)
        for programs in (1, 3):
            assert torch.equal(paged.attend(q, counts, replace(TILE, rows=16), programs), alone)


def test_a_query_gives_the_same_bits_alone_and_inside_any_chunk() -> None:
    length, count = 75, 45
    paged = Paged([length], 1, 16)
    q = random(count, 4, 16)
    whole = paged.attend(q, [count], TILE)
    for size, firsts in ((1, (0, 20, 21, 44)), (7, (3, 38)), (44, (1,))):
        for first in firsts:
            chunk = q[first : first + size]
            paged.lengths = [length - count + first + chunk.shape[0]]
            got = paged.attend(chunk, [chunk.shape[0]], TILE, programs=1 + first % 2)
            assert torch.equal(got, whole[first : first + size]), (size, first)


def test_poisoned_free_slots_change_nothing() -> None:
    paged, counts = Paged([41, 9, 16], 2, 16), [3, 1, 16]
    q = random(20, 4, 16)
    clean = paged.attend(q, counts)
    paged.poison()
    assert torch.equal(paged.attend(q, counts), clean)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_in_a_row_stays_visible_and_in_that_row() -> None:
    paged, counts = Paged([41, 40], 1, 16), [1, 1]
    q = random(2, 4, 16)
    clean = paged.attend(q, counts)
    block, offset = paged.slots(0, 41)
    paged.cache.keys[1, block[20], :, offset[20]] = torch.nan
    got = paged.attend(q, counts)
    assert got[0].isnan().all()
    assert torch.equal(got[1], clean[1])


def test_a_padding_row_of_length_zero_gives_zeros() -> None:
    paged = Paged([20, 1], 1, 16)
    paged.lengths = [20, 0]
    for programs in (1, 2):
        got = paged.attend(random(2, 4, 16), [1, 1], TILE, programs)
        assert not got[1].any()


def test_programs_are_split_only_where_work_is_scarce() -> None:
    assert split_programs(1, 1, CPU) == 1
    assert split_programs(1, 9, CPU) == 9
    assert split_programs(2, 9, CPU) == 5
    assert split_programs(3, 9, CPU) == 3
    assert split_programs(50, 9, CPU) == 1


@pytest.mark.parametrize("head_dim", [16, 20, 128])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_rope_turns_q_and_writes_roped_k_and_plain_v_to_their_slots(head_dim: int, dtype: str) -> None:
    positions, slots = torch.tensor([0, 77, 3, 5]), torch.tensor([9, 0, 23, -1])
    tables = rope_tables(head_dim, 10000.0, 100, CPU)
    cache = new_cache(2, 3, BLOCK_TOKENS, 2, head_dim, dtype, CPU)
    qkv = random(4, 8 * head_dim)
    q = rope_write_kv(qkv, positions, tables, cache, 1, slots, CPU)
    heads = qkv.view(4, 8, head_dim).numpy()
    turned = oracle.rope(heads, positions.tolist(), 10000.0)
    np.testing.assert_allclose(q.numpy(), turned[:, :4], rtol=0, atol=2e-5)
    assert not any(tensor[0].any() for tensor in cache.tensors if tensor.numel())
    for pages, scales, values in (
        (cache.keys, cache.key_scale, turned[:, 4:6]),
        (cache.values, cache.value_scale, heads[:, 6:].astype(np.float64)),
    ):
        written = pages[1].transpose(1, 2).reshape(-1, 2, head_dim)
        assert int((written != 0).any(-1).any(-1).sum()) == 3
        got = written[slots[:3]].double().numpy()
        if dtype == "bf16":
            np.testing.assert_allclose(got, oracle.bf16(values[:3]), rtol=0.01, atol=2e-5)
            assert np.mean(got != oracle.bf16(values[:3])) < 0.01
        else:
            scale = scales[1].transpose(1, 2).reshape(-1, 2)[slots[:3]].double().numpy()
            np.testing.assert_allclose(scale, np.abs(values[:3]).max(-1) / 127, rtol=1e-5)
            np.testing.assert_allclose(got * scale[..., None], values[:3], rtol=0, atol=0.51 * scale.max())


def test_stored_values_are_rounded_half_to_even_like_torch() -> None:
    cache = new_cache(1, 2, BLOCK_TOKENS, 1, 16, "bf16", CPU)
    v = random(9, 16) * 10.0 ** torch.from_numpy(RNG.integers(-30, 30, (9, 1)))
    v[0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, torch.nan])
    qkv = torch.cat([torch.zeros(9, 32), v.float()], 1)
    rope_write_kv(qkv, torch.zeros(9, dtype=torch.int64), rope_tables(16, 1e4, 4, CPU), cache, 0, torch.arange(9), CPU)
    written = cache.values[0].transpose(1, 2).reshape(-1, 16)[:9]
    assert torch.equal(written.float().nan_to_num(7), v.float().to(torch.bfloat16).float().nan_to_num(7))


def test_zero_blocks_clears_these_blocks_in_every_layer() -> None:
    for dtype in ("bf16", "int8"):
        cache: Cache = new_cache(2, 4, BLOCK_TOKENS, 1, 16, dtype, CPU)
        for tensor in cache.tensors:
            tensor.fill_(1)
        zero_blocks(cache, [2, 0])
        for tensor in cache.tensors:
            if tensor.numel():
                assert [bool(tensor[:, block].any()) for block in range(4)] == [False, True, False, True]


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    cache = new_cache(1, 1, BLOCK_TOKENS, 2, 16, "bf16", CPU)
    tables, one = rope_tables(16, 1e4, 4, CPU), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="qkv has 100 columns"):
        rope_write_kv(torch.zeros(1, 100), one, tables, cache, 0, one, CPU)
    with pytest.raises(ValueError, match="heads of 8, the cache has 16"):
        rope_write_kv(torch.zeros(1, 128), one, rope_tables(8, 1e4, 4, CPU), cache, 0, one, CPU)
    with pytest.raises(ValueError, match="even head size, not 15"):
        rope_tables(15, 1e4, 4, CPU)
    with pytest.raises(ValueError, match="bf16 or int8, not 'fp8'"):
        new_cache(1, 1, 8, 1, 16, "fp8", CPU)
