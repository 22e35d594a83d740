"""Paged attention: the oracle on ragged rows, and bits that depend on a query's position and keys alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cpu_fallback.cache import Cache
from cpu_fallback.schedule import query_tile
from cpu_fallback.wing import TorchWing
from tests import oracle
from tests.cpu_fallback.wings import normal, wing

Dtype = Literal["bf16", "int8"]
HEADS = [(4, 2, 16), (3, 1, 100), (2, 2, 8), (8, 1, 64), (20, 5, 128)]


@dataclass
class Row:
    """A request: its qkv f32 [length, Hq + 2 Hkv, D], its blocks, and the queries of this step."""

    qkv: Tensor
    blocks: list[int]
    count: int

    @property
    def length(self) -> int:
        return len(self.qkv)


class Bench:
    """A cache of one layer with rows written at position 0 (no turning), so that tests know the keys and values."""

    def __init__(self, ops: TorchWing, heads: tuple[int, int, int], dtype: Dtype = "bf16", block_tokens: int = 32):
        self.ops = ops
        self.Hq, self.Hkv, self.D = heads
        self.block_tokens = block_tokens
        self.cache: Cache = ops.new_cache(1, 160, block_tokens, self.Hkv, self.D, dtype)
        self.tables = ops.rope_tables(self.D, 1e4, None, 1)
        self.free = np.random.default_rng(0).permutation(160).tolist()

    def row(self, seed: int, length: int, count: int) -> Row:
        qkv = normal(seed, length, self.Hq + 2 * self.Hkv, self.D)
        qkv[:, : self.Hq] *= 2
        row = Row(qkv, [self.free.pop() for _ in range(-(-length // self.block_tokens))], count)
        self.write(row)
        return row

    def write(self, row: Row) -> None:
        slots = torch.tensor(
            [row.blocks[p // self.block_tokens] * self.block_tokens + p % self.block_tokens for p in range(row.length)]
        )
        flat = row.qkv.reshape(row.length, -1)
        self.ops.rope_write_kv(flat, torch.zeros(row.length, dtype=torch.int64), self.tables, self.cache, 0, slots)

    def attend(self, rows: list[Row]) -> list[Tensor]:
        """The outputs of each row's last `count` queries."""
        width = max(len(row.blocks) for row in rows)
        tables = torch.tensor([row.blocks + [0] * (width - len(row.blocks)) for row in rows], dtype=torch.int32)
        lengths = torch.tensor([row.length for row in rows], dtype=torch.int32)
        starts = torch.tensor([0, *np.cumsum([row.count for row in rows])], dtype=torch.int32)
        q = torch.cat([row.qkv[row.length - row.count :, : self.Hq] for row in rows])
        out = self.ops.paged_attention(q, self.cache, 0, tables, lengths, starts)
        return list(torch.split(out, [row.count for row in rows]))

    def expected(self, row: Row) -> np.ndarray:
        q, k, v = np.split(row.qkv.numpy(), [self.Hq, self.Hq + self.Hkv], axis=1)
        return oracle.attention(q[row.length - row.count :], oracle.bf16(k), oracle.bf16(v))


def shortened(row: Row, length: int, count: int) -> Row:
    """The same request at an earlier step."""
    return Row(row.qkv[:length], row.blocks, count)


RAGGED = [(1, 1), (2, 2), (70, 1), (64, 64), (65, 3), (33, 16), (200, 130), (129, 1)]


@pytest.mark.parametrize("block_tokens", [32, 7])
@pytest.mark.parametrize("heads", HEADS)
def test_ragged_rows_meet_the_oracle(heads: tuple[int, int, int], block_tokens: int) -> None:
    with wing(2) as ops:
        bench = Bench(ops, heads, block_tokens=block_tokens)
        rows = [bench.row(seed, length, count) for seed, (length, count) in enumerate(RAGGED)]
        for row, out in zip(rows, bench.attend(rows), strict=True):
            np.testing.assert_allclose(out.numpy(), bench.expected(row), atol=2e-5)


def test_an_int8_cache_gives_back_what_it_rounded_in_the_same_step() -> None:
    with wing() as ops:
        bench = Bench(ops, (4, 2, 16), "int8")
        row = bench.row(1, 90, 90)
        k, v = np.split(row.qkv.numpy()[:, 4:], 2, axis=1)
        stored: list[oracle.F64] = []
        for part in (k, v):
            codes, scale = oracle.quantize(part.reshape(-1, 16))
            stored.append((codes.astype(np.float64) * scale[:, None].astype(np.float64)).reshape(90, 2, 16))
        expected = oracle.attention(row.qkv.numpy()[:, :4], *stored)
        np.testing.assert_allclose(bench.attend([row])[0].numpy(), expected, atol=2e-5)
        assert ops.memory_bytes(bench.cache) == 2 * (160 * 32 + 1) * 2 * (16 + 4)


@pytest.mark.parametrize(("heads", "dtype"), [*((heads, "bf16") for heads in HEADS), (HEADS[0], "int8")])
def test_chunking_company_order_and_threads_change_no_bit(heads: tuple[int, int, int], dtype: Dtype) -> None:
    with wing(1) as ops:
        bench = Bench(ops, heads, dtype)
        rows = [bench.row(seed, length, count) for seed, (length, count) in enumerate(RAGGED)]
        subject = rows[6]
        whole = bench.attend([shortened(subject, 200, 200)])[0]
        for chunk in (1, 7, 64, 130):
            ends = [*range(chunk, 200, chunk), 200]
            parts = [bench.attend([shortened(subject, e, e - b)])[0] for b, e in zip([0, *ends], ends, strict=False)]
            assert torch.equal(torch.cat(parts), whole), chunk
        together = bench.attend(rows)
        assert torch.equal(together[6], whole[70:])
        backwards = bench.attend(rows[::-1])[::-1]
        ops.set_threads(3)
        threaded = bench.attend(rows)
        for a, b, c in zip(together, backwards, threaded, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_one_long_row_among_short_ones_is_the_same_as_alone() -> None:
    with wing(2) as ops:
        bench = Bench(ops, (4, 1, 16))
        rows = [bench.row(0, 3000, 1), *(bench.row(seed, 40 + seed, 1) for seed in range(1, 16))]
        for row, out in zip(rows, bench.attend(rows), strict=True):
            assert torch.equal(bench.attend([row])[0], out)
        np.testing.assert_allclose(bench.attend(rows[:1])[0].numpy(), bench.expected(rows[0]), atol=2e-5)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_nan_in_every_free_slot_changes_nothing(dtype: Dtype) -> None:
    with wing() as ops:
        bench = Bench(ops, (4, 2, 16), dtype)
        rows = [bench.row(seed, length, count) for seed, (length, count) in enumerate(RAGGED)]
        clean = bench.attend(rows)
        used = {row.blocks[p // 32] * 32 + p % 32 for row in rows for p in range(row.length)}
        free = torch.tensor(sorted(set(range(160 * 32)) - used))
        for store in (*bench.cache.keys, *bench.cache.values):
            if store.scales is None:
                store.rows[free] = torch.nan
            else:
                store.rows[free] = 99
                store.scales[free] = torch.nan
        assert all(torch.equal(a, b) for a, b in zip(clean, bench.attend(rows), strict=True))


def test_a_row_with_nan_is_nan_and_its_company_is_not_touched_until_its_blocks_are_zeroed() -> None:
    with wing() as ops:
        bench = Bench(ops, (4, 2, 16))
        good, bad = bench.row(1, 100, 9), bench.row(2, 100, 9)
        clean = bench.attend([good])[0]
        bad.qkv[20, 5:] = torch.nan
        bench.write(bad)
        outs = bench.attend([bad, good])
        assert bool(outs[0].isnan().any())
        assert torch.equal(outs[1], clean)
        ops.zero_blocks(bench.cache, bad.blocks)
        assert bool((bench.attend([bad])[0] == 0).all())
        assert torch.equal(bench.attend([good])[0], clean)
        with pytest.raises(ValueError, match="block 160 is outside the pool of 160"):
            ops.zero_blocks(bench.cache, [160])


def test_tensors_reused_for_the_next_step_are_noticed() -> None:
    with wing() as ops:
        bench = Bench(ops, (4, 2, 16))
        a, b = bench.row(1, 64, 1), bench.row(2, 64, 1)
        tables, lengths, starts = torch.tensor([a.blocks]).int(), torch.tensor([64]).int(), torch.tensor([0, 1]).int()
        q = a.qkv[-1:, :4]
        first = ops.paged_attention(q, bench.cache, 0, tables, lengths, starts)
        tables.numpy()[0] = b.blocks
        second = ops.paged_attention(q, bench.cache, 0, tables, lengths, starts)
        lengths.numpy()[0] = 63
        third = ops.paged_attention(q, bench.cache, 0, tables, lengths, starts)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_blocks_may_be_shared_between_rows() -> None:
    with wing() as ops:
        bench = Bench(ops, (4, 2, 16))
        a = bench.row(1, 100, 5)
        b = shortened(a, 96, 40)
        together = bench.attend([a, b])
        assert torch.equal(together[0], bench.attend([a])[0])
        assert torch.equal(together[1], bench.attend([b])[0])


@pytest.mark.parametrize("group", range(1, 20))
def test_a_query_tile_never_straddles_a_key_tile(group: int) -> None:
    assert 64 % query_tile(group) == 0
    assert query_tile(group) * group <= 8 or query_tile(group) == 1


def test_heads_that_do_not_fit_the_cache_and_unknown_dtypes_are_refused() -> None:
    with wing() as ops:
        bench = Bench(ops, (4, 2, 16))
        row = bench.row(1, 4, 1)
        bench.Hq = 3
        with pytest.raises(ValueError, match="3 query heads of 16 do not fit a cache of 2 heads of 16"):
            bench.attend([row])
        with pytest.raises(ValueError, match="bf16 or int8, not 'f16'"):
            ops.new_cache(1, 1, 1, 1, 4, "f16")  # type: ignore[arg-type]
