"""Weights at one byte each: the same bits as the packed ones, whatever the tile, the way to fetch it and the edges."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tests import oracle
from tests.triton_kernels.interpreted.test_linear import CPU, outputs, packed, quantized, random
from triton_kernels.dense import dense_linear, dense_scratch, scratch_size
from triton_kernels.dense_gated import dense_gated
from triton_kernels.device import open_device
from triton_kernels.linear import ternary_linear
from triton_kernels.pack import Dense, Weights, dense_bytes, padded, unpacked
from triton_kernels.pointwise import gate_quantize, quantize
from triton_kernels.tuning import COPY_ENGINE, OWN_ADDRESSES, DenseTile, dense_key

TILES = [
    DenseTile(64, 16, 128, 1, num_warps=4, num_stages=1, fetch=OWN_ADDRESSES),
    DenseTile(64, 16, 128, 3, num_warps=4, num_stages=1, fetch=COPY_ENGINE),
    DenseTile(32, 32, 64, 2, num_warps=4, num_stages=1, fetch=OWN_ADDRESSES),
    DenseTile(128, 64, 128, 1, num_warps=1, num_stages=1, fetch=COPY_ENGINE),
]
"""The last one is so large for its one warp that its epilogue goes in halves."""


def test_unpacked_weights_are_the_ternary_ones_in_canonical_order() -> None:
    w, ternary, row_scale = packed([40, 12, 8], 100)
    dense = unpacked(w)
    np.testing.assert_array_equal(dense.weights[:, :100].numpy(), ternary)
    assert not dense.weights[:, 100:].any()
    np.testing.assert_array_equal(dense.row_scale.numpy(), row_scale)
    assert dense_bytes(w) == 60 * (padded(100) + 4) == dense.weights.nbytes + dense.row_scale.nbytes


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_gives_the_bits_of_the_packed_form(tile: DenseTile) -> None:
    w, ternary, row_scale = packed([84, 28, 24], 384)
    dense = unpacked(w)
    for num_tokens in (1, 17, 70):
        q, codes, scale = quantized(num_tokens, 384)
        residual = random(num_tokens, 136)
        for given in (None, residual):
            added = None if given is None else torch.from_numpy(given)
            out = outputs(num_tokens, w)
            scratch = dense_scratch(num_tokens, 136, tile, None, CPU)
            dense_linear(out, q, dense, added, tile, CPU, scratch)
            np.testing.assert_array_equal(out.numpy(), oracle.linear(codes, scale, ternary, row_scale, given))
            assert torch.equal(out, ternary_linear(q, w, added, CPU))
            assert not scratch.any(), "scratch is not zero again"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the sigmoid of large sums overflows to the zero it is
@pytest.mark.parametrize("act", ["relu2", "silu"])
def test_gate_and_up_multiplied_have_the_bits_of_a_gate_afterwards(act: str) -> None:
    w, *_ = packed([52, 52], 256)
    gain = torch.from_numpy(random(52))
    for num_tokens, tile in ((3, TILES[0]), (70, replace(TILES[3], fetch=OWN_ADDRESSES)), (40, TILES[3])):
        q, *_ = quantized(num_tokens, 256)
        wanted = gate_quantize(ternary_linear(q, w, None, CPU), gain, 1e-5, act, CPU)
        out = torch.full((num_tokens, 52), torch.nan)
        dense_gated(out, q, unpacked(w), act, tile, CPU)
        got = quantize(out, gain, 1e-5, CPU)
        for mine, theirs in ((got.codes, wanted.codes), (got.scale, wanted.scale), (got.code_sum, wanted.code_sum)):
            assert torch.equal(mine, theirs)


def test_the_copy_is_used_where_a_row_says_so_and_changes_no_bit() -> None:
    w, *_ = packed([40], 128)
    marked = replace(w, dense=Dense(torch.zeros_like(unpacked(w).weights), unpacked(w).row_scale))
    q, *_ = quantized(3, 128)
    device = open_device(torch.device("cpu"), tuned={dense_key(4, 40, 128): asdict(TILES[0])})
    plain = ternary_linear(q, w, None, CPU)
    assert torch.equal(ternary_linear(q, marked, None, CPU), plain)  # few tokens and no row: the packed weights
    assert not ternary_linear(q, marked, None, device).any()  # a row: the copy, here of zeros
    assert torch.equal(ternary_linear(q, replace(w, dense=unpacked(w)), None, device), plain)


def test_the_largest_sums_do_not_overflow() -> None:
    k = 23040
    w = Weights(
        torch.full((16, k), 0xAA - 64, dtype=torch.uint8).view(torch.int8),  # four times code 2, which is ternary 1
        torch.ones(4, 16),
        torch.arange(16, dtype=torch.int32),
        torch.full((16,), 16, dtype=torch.int32),
        k,
    )
    q, *_ = quantized(1, k)
    q.codes.fill_(-127)
    q.scale.fill_(1.0)
    out = outputs(1, w)
    dense_linear(
        out, q, unpacked(w), None, replace(TILES[0], depth=512), CPU, dense_scratch(1, 64, TILES[0], None, CPU)
    )
    assert out.tolist() == [[-127.0 * k] * 64]


def test_scratch_is_held_or_made_and_holds_sums_and_counters() -> None:
    tile = TILES[1]
    assert scratch_size(20, 136, TILES[0]) == 0
    assert scratch_size(20, 136, tile) == 20 * 136 + 2 * 3
    held = torch.zeros(20 * 136 + 6, dtype=torch.int32)
    assert dense_scratch(20, 136, tile, held, CPU) is held
    assert dense_scratch(20, 136, tile, held[1:], CPU).numel() == held.numel()


def test_a_wrong_shape_is_refused_with_the_numbers() -> None:
    w, *_ = packed([8], 64)
    q, *_ = quantized(2, 64)
    dense, scratch = unpacked(w), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="K = 128 cannot be cut into 3 parts of whole tiles of 128"):
        dense_linear(outputs(2, w), q, dense, None, TILES[1], CPU, scratch)
    with pytest.raises(ValueError, match="not those of 3 parts of K"):
        dense_gated(torch.empty(2, 4), q, dense, "relu2", TILES[1], CPU)
    with pytest.raises(ValueError, match="not 'gelu'"):
        dense_gated(torch.empty(2, 4), q, dense, "gelu", TILES[0], CPU)
