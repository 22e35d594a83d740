from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import oracle
from triton_kernels.device import open_device
from triton_kernels.gated import gated_linear
from triton_kernels.gemv import gemv
from triton_kernels.linear import matmul, ternary_linear
from triton_kernels.pack import K_ALIGN, Weights, pack, padded
from triton_kernels.pointwise import Quantized, gate_quantize, quantize
from triton_kernels.tuning import LinearTile

CPU = open_device(torch.device("cpu"))
RNG = np.random.default_rng(4)


def packed(rows: Sequence[int], k: int) -> tuple[Weights, oracle.I64, oracle.F32]:
    """Random segments: what the wing packed, and the same as plain ternary [N, K] and row scale [N]."""
    ternary = [RNG.integers(-1, 2, (n, k)) for n in rows]
    scales = [RNG.uniform(0.5, 2, n).astype(np.float32) for n in rows]
    segments = [
        (torch.from_numpy(oracle.plane_bytes(t)), torch.from_numpy(s)) for t, s in zip(ternary, scales, strict=True)
    ]
    return pack(segments, CPU.torch_device), np.concatenate(ternary), np.concatenate(scales)


def quantized(num_tokens: int, k: int) -> tuple[Quantized, oracle.I64, oracle.F32]:
    codes = RNG.integers(-127, 128, (num_tokens, k))
    scale = RNG.uniform(0.01, 3, num_tokens).astype(np.float32)
    stored = torch.zeros(num_tokens, padded(k), dtype=torch.int8)
    stored[:, :k] = torch.from_numpy(codes)
    total = torch.from_numpy(codes.sum(1).astype(np.int32))
    return Quantized(stored, torch.from_numpy(scale), total, k), codes, scale


def random(*shape: int) -> oracle.F32:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "k"), [([4], 32), ([40, 12, 8], 100), ([20, 20], 288), ([64], 128), ([68, 4], 384), ([12], 1)]
)
@pytest.mark.parametrize("num_tokens", [1, 17])
def test_every_segment_comes_out_in_canonical_order_bit_for_bit(rows: list[int], k: int, num_tokens: int) -> None:
    w, ternary, row_scale = packed(rows, k)
    q, codes, scale = quantized(num_tokens, k)
    residual = random(num_tokens, sum(rows))
    for given in (None, residual):
        wanted = oracle.linear(codes, scale, ternary, row_scale, given)
        got = ternary_linear(q, w, None if given is None else torch.from_numpy(given), CPU)
        np.testing.assert_array_equal(got.numpy(), wanted)


TILES = [
    LinearTile(packed=16, tokens=16, depth=128, split_k=1, num_warps=4, num_stages=1),
    LinearTile(packed=32, tokens=64, depth=32, split_k=1, num_warps=4, num_stages=1),
    LinearTile(packed=16, tokens=16, depth=128, split_k=3, num_warps=4, num_stages=1),
    LinearTile(packed=64, tokens=32, depth=128, split_k=1, num_warps=8, num_stages=1),
]


def outputs(num_tokens: int, w: Weights) -> Tensor:
    return torch.full((num_tokens, w.num_outputs), torch.nan)


def test_every_form_and_tile_gives_the_same_bits() -> None:
    w, ternary, row_scale = packed([84, 28], 384)
    for num_tokens in (2, 17):
        q, codes, scale = quantized(num_tokens, 384)
        residual = random(num_tokens, 112)
        wanted = oracle.linear(codes, scale, ternary, row_scale, residual)
        given = torch.from_numpy(residual)
        for tile in TILES:
            out = outputs(num_tokens, w)
            matmul(out, q, w, given, tile, CPU, None)
            np.testing.assert_array_equal(out.numpy(), wanted, err_msg=str(tile))
    q, codes, scale = quantized(2, 384)
    for packed_rows, depth in ((4, 512), (8, 128)):
        out = outputs(2, w)
        gemv(out, q, w, None, LinearTile(packed_rows, 1, depth, 1, 4, 1), CPU)
        np.testing.assert_array_equal(out.numpy(), oracle.linear(codes, scale, ternary, row_scale))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the sigmoid of large sums overflows to the zero it is
@pytest.mark.parametrize("act", ["relu2", "silu"])
def test_a_gate_in_the_epilogue_gives_the_bits_of_a_gate_afterwards(act: str) -> None:
    w, *_ = packed([52, 52], 256)
    gain = torch.from_numpy(random(52))
    for num_tokens, tile in ((3, TILES[0]), (17, TILES[1]), (0, TILES[0])):
        q, *_ = quantized(num_tokens, 256)
        wanted = gate_quantize(ternary_linear(q, w, None, CPU), gain, 1e-5, act, CPU)
        got = quantize(gated_linear(q, w, act, tile, CPU), gain, 1e-5, CPU)
        for mine, theirs in ((got.codes, wanted.codes), (got.scale, wanted.scale), (got.code_sum, wanted.code_sum)):
            assert torch.equal(mine, theirs)


def test_a_gate_in_the_epilogue_refuses_what_does_not_fit_with_the_numbers() -> None:
    q, *_ = quantized(2, 256)
    with pytest.raises(ValueError, match="equal segments, not 3 packed rows"):
        gated_linear(q, packed([12], 256)[0], "relu2", TILES[0], CPU)
    with pytest.raises(ValueError, match="K = 128 inputs, the codes have K = 256"):
        gated_linear(q, packed([8], 128)[0], "relu2", TILES[0], CPU)
    with pytest.raises(ValueError, match="K = 256 cannot be cut into one part"):
        gated_linear(q, packed([8], 256)[0], "relu2", TILES[2], CPU)
    with pytest.raises(ValueError, match="not 'gelu'"):
        gated_linear(q, packed([8], 256)[0], "gelu", TILES[0], CPU)


def test_the_largest_sums_do_not_overflow() -> None:
    k = 23040
    for sign in (-1, 1):
        planes = torch.from_numpy(oracle.plane_bytes(np.full((4, k), sign)))
        w = pack([(planes, torch.ones(4))], CPU.torch_device)
        codes = torch.full((1, k), 127, dtype=torch.int8)
        q = Quantized(codes, torch.ones(1), torch.full((1,), 127 * k, dtype=torch.int32), k)
        out = outputs(1, w)
        matmul(out, q, w, None, LinearTile(16, 16, 512, 1, 4, 1), CPU, None)
        assert out.tolist() == [[sign * 127.0 * k] * 4]


def test_the_scratch_of_a_split_k_is_zero_again_afterwards() -> None:
    w, *_ = packed([36], 256)
    q, *_ = quantized(3, 256)
    scratch = torch.zeros(3 * 36 + 5, dtype=torch.int32)
    first, second = outputs(3, w), outputs(3, w)
    for out in (first, second):
        matmul(out, q, w, None, LinearTile(16, 16, 128, 2, 4, 1), CPU, scratch)
    assert torch.equal(first, second)
    assert not scratch.any()


def test_no_tokens_give_no_outputs() -> None:
    w, *_ = packed([8], 64)
    q, *_ = quantized(0, 64)
    assert ternary_linear(q, w, None, CPU).shape == (0, 8)


def test_a_wrong_shape_is_refused_with_the_numbers() -> None:
    w, *_ = packed([8], 64)
    q, *_ = quantized(2, 96)
    with pytest.raises(ValueError, match=r"K = 64 inputs, the codes have K = 96"):
        ternary_linear(q, w, None, CPU)
    q, *_ = quantized(2, 64)
    with pytest.raises(ValueError, match=r"\[2, 8\], not \[2, 4\]"):
        ternary_linear(q, w, torch.zeros(2, 4), CPU)
    with pytest.raises(ValueError, match=r"K = 128 cannot be cut into 3 parts"):
        matmul(outputs(2, w), q, w, None, LinearTile(16, 16, 128, 3, 4, 1), CPU, None)


def test_padding_is_neutral_and_aligned() -> None:
    w, *_ = packed([8], 33)
    assert w.padded_k == K_ALIGN
    assert set(w.planes[:, 33:].view(torch.uint8).flatten().tolist()) == {0x55 - 64}


def test_pack_refuses_what_does_not_fit_with_the_numbers() -> None:
    planes, scale = torch.zeros(2, 8, dtype=torch.uint8), torch.ones(8)
    with pytest.raises(ValueError, match="at least one segment"):
        pack([], CPU.torch_device)
    with pytest.raises(ValueError, match="segment 0: 2 packed rows need a row_scale of 8 values, not \\[2\\]"):
        pack([(planes, torch.ones(2))], CPU.torch_device)
    with pytest.raises(ValueError, match="segment 1 has K = 4, segment 0 has K = 8"):
        pack([(planes, scale), (planes[:, :4], scale)], CPU.torch_device)
    with pytest.raises(ValueError, match=r"uint8 \[N/4, K\], not torch.int8"):
        pack([(planes.view(torch.int8), scale)], CPU.torch_device)
