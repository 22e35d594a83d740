"""The layout of ternary weights: what pack makes of planes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpu_fallback.pack import pack
from tests import oracle
from tests.cpu_fallback.wings import segment, ternary, wing


@pytest.mark.parametrize(("N", "K"), [(4, 4), (12, 20), (20, 100), (36, 260)])
def test_weights_come_out_in_canonical_order(N: int, K: int) -> None:
    planes, row_scale = segment(1, N, K)
    packed = pack([(planes, row_scale)])
    assert np.array_equal(packed.codes.numpy(), ternary(1, N, K))
    assert np.array_equal(packed.codes.numpy(), oracle.unpack(planes.numpy()))
    assert torch.equal(packed.row_scale, row_scale)


def test_segments_of_unequal_size_follow_each_other() -> None:
    packed = pack([segment(seed, N, 24) for seed, N in ((1, 12), (5, 4), (9, 28))])
    expected = np.concatenate([ternary(seed, N, 24) for seed, N in ((1, 12), (5, 4), (9, 28))])
    assert np.array_equal(packed.codes.numpy(), expected)
    assert packed.row_scale.shape == (44,)


def test_the_handle_outlives_its_inputs() -> None:
    planes, row_scale = segment(1, 8, 8)
    packed = pack([(planes, row_scale)])
    planes.fill_(0xAA)
    row_scale.zero_()
    assert np.array_equal(packed.codes.numpy(), ternary(1, 8, 8))
    assert bool((packed.row_scale > 0).all())


def test_memory_is_one_byte_per_weight() -> None:
    with wing() as ops:
        assert ops.memory_bytes(ops.pack([segment(1, 32, 64)])) == 32 * 64 + 32 * 4


def test_code_3_is_refused_wherever_it_stands() -> None:
    for shift in (0, 2, 4, 6):
        planes, row_scale = segment(1, 12, 8)
        planes[1, 5] |= 3 << shift
        with pytest.raises(ValueError, match="code 3"):
            pack([(planes, row_scale)])


def test_neighbouring_codes_are_not_mistaken_for_code_3() -> None:
    # Codes 2 and 1 side by side also make two adjacent set bits.
    codes = np.array([[1], [0], [1], [0]]), np.array([[0], [1], [0], [1]])
    for column in codes:
        ternaries = np.repeat(column, 4, axis=1)
        packed = pack([(torch.from_numpy(oracle.plane_bytes(ternaries)), torch.ones(4))])
        assert np.array_equal(packed.codes.numpy(), ternaries)


@pytest.mark.parametrize(
    ("planes", "row_scale", "message"),
    [
        (torch.ones(2, 6, dtype=torch.uint8), torch.ones(8), "multiple of 4, got 6"),
        (torch.ones(2, 0, dtype=torch.uint8), torch.ones(8), "multiple of 4, got 0"),
        (torch.ones(0, 4, dtype=torch.uint8), torch.ones(0), r"uint8 \[0, 4\]"),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(8), "int8"),
        (torch.ones(2, 4, 4, dtype=torch.uint8), torch.ones(8), r"\[2, 4, 4\]"),
        (torch.ones(2, 4, dtype=torch.uint8), torch.ones(7), r"f32 \[8\], got torch.float32 \[7\]"),
        (torch.ones(2, 4, dtype=torch.uint8), torch.ones(8).bfloat16(), "bfloat16"),
        (torch.ones(1, 132108, dtype=torch.uint8), torch.ones(4), "K = 132108 is too large"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_numbers(
    planes: torch.Tensor, row_scale: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack([(planes, row_scale)])


def test_segments_must_share_k_and_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="segment 1: has K = 12, segment 0 has K = 8"):
        pack([segment(1, 8, 8), segment(2, 8, 12)])
    with pytest.raises(ValueError, match="at least one segment"):
        pack([])
