"""The native ternary linear and its packing, every instruction set of this machine, against int64 arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpu_fallback.native_handles import Quantized
from tests.cpu_fallback.native_support import every_isa, open_wing, random_planes

SHAPES = [(4, 4), (16, 16), (20, 36), (60, 20), (64, 260), (148, 548), (260, 2084), (1444, 300), (4868, 276)]
TOKENS = [1, 2, 3, 5, 7, 8, 9, 13, 17, 25, 32, 54, 65]
"""The last of both go the wide way where there is one: from 13 tokens and 640 rows on, from 8 and 4800."""


def random_activations(generator: torch.Generator, tokens: int, width: int) -> tuple[Tensor, Quantized]:
    codes = torch.randint(-127, 128, (tokens, width), generator=generator, dtype=torch.int8)
    return codes, quantized(codes, torch.rand(tokens, generator=generator) + 0.1)


def quantized(codes: Tensor, scale: Tensor) -> Quantized:
    padded = torch.zeros(codes.shape[0], -(-codes.shape[1] // 16) * 16, dtype=torch.int8)
    padded[:, : codes.shape[1]] = codes
    return Quantized(padded, scale, codes.sum(-1, dtype=torch.int32), codes.shape[1])


@every_isa
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_outputs_are_the_exact_integer_sums_times_the_scales(isa: str, rows: int, width: int) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(rows * width)
    ternary, planes = random_planes(generator, rows, width)
    row_scale = torch.rand(rows, generator=generator) + 0.1
    weights = wing.pack([(planes, row_scale)])
    for tokens in TOKENS:
        codes, q = random_activations(generator, tokens, width)
        residual = torch.randn(tokens, rows, generator=generator)
        sums = (codes.long() @ ternary.T).float()
        expected = sums * (q.scale[:, None] * row_scale)
        assert torch.equal(wing.ternary_linear(q, weights), expected), tokens
        assert torch.equal(wing.ternary_linear(q, weights, residual), residual + expected), tokens


@every_isa
def test_the_largest_sums_of_any_model_do_not_saturate(isa: str) -> None:
    wing, width = open_wing(isa), 23040
    for value in (-1, 1):
        planes = torch.full((4, width), (value + 1) * 0b01010101, dtype=torch.uint8)
        weights = wing.pack([(planes, torch.ones(16))])
        for tokens in (1, 2, 9):
            for code in (-127, 127):
                q = quantized(torch.full((tokens, width), code, dtype=torch.int8), torch.ones(tokens))
                assert torch.equal(
                    wing.ternary_linear(q, weights), torch.full((tokens, 16), float(value * code * width))
                )


@every_isa
def test_the_largest_sums_of_many_tokens_and_rows_do_not_saturate(isa: str) -> None:
    wing, width = open_wing(isa), 2100
    for value in (-1, 1):
        for rows, tokens in ((704, 32), (4864, 8)):
            planes = torch.full((rows // 4, width), (value + 1) * 0b01010101, dtype=torch.uint8)
            weights = wing.pack([(planes, torch.ones(rows))])
            for code in (-127, 127):
                q = quantized(torch.full((tokens, width), code, dtype=torch.int8), torch.ones(tokens))
                assert (wing.ternary_linear(q, weights) == float(value * code * width)).all()


@every_isa
def test_segments_keep_their_own_planes_and_come_out_in_order(isa: str) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(1)
    parts = [random_planes(generator, rows, 52) for rows in (20, 4, 12)]
    scales = [torch.rand(rows, generator=generator) for rows in (20, 4, 12)]
    weights = wing.pack([(planes, scale) for (_, planes), scale in zip(parts, scales, strict=True)])
    codes, q = random_activations(generator, 3, 52)
    sums = (codes.long() @ torch.cat([ternary for ternary, _ in parts]).T).float()
    assert torch.equal(wing.ternary_linear(q, weights), sums * (q.scale[:, None] * torch.cat(scales)))


@every_isa
def test_a_token_alone_has_the_bits_it_has_in_company_on_any_number_of_threads(isa: str) -> None:
    generator = torch.Generator().manual_seed(2)
    _, planes = random_planes(generator, 1284, 100)
    _, q = random_activations(generator, 33, 100)
    wing = open_wing(isa)
    weights = wing.pack([(planes, torch.rand(1284, generator=generator))])
    together = wing.ternary_linear(q, weights)
    for threads in (1, 2, 5):
        wing.set_threads(threads)
        assert torch.equal(wing.ternary_linear(q, weights), together)
        for t in range(33):
            alone = Quantized(q.codes[t : t + 1], q.scale[t : t + 1], q.sums[t : t + 1], q.width)
            assert torch.equal(wing.ternary_linear(alone, weights)[0], together[t])


@every_isa
def test_a_row_gone_bad_shows_and_leaves_the_others_alone(isa: str) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(3)
    for rows, tokens in ((36, 9), (708, 32)):
        _, planes = random_planes(generator, rows, 68)
        weights = wing.pack([(planes, torch.ones(rows))])
        x = torch.randn(tokens, 68, generator=generator)
        clean = wing.ternary_linear(wing.quantize(x), weights)
        others = [token for token in range(tokens) if token != 4]
        for poison in (float("nan"), float("inf")):
            bad = x.clone()
            bad[4, 67] = poison
            out = wing.ternary_linear(wing.quantize(bad), weights)
            assert not out[4].isfinite().any()
            assert torch.equal(out[others], clean[others])


def test_no_tokens_give_no_rows() -> None:
    wing = open_wing("portable")
    weights = wing.pack([(torch.zeros(1, 8, dtype=torch.uint8), torch.ones(4))])
    assert wing.ternary_linear(wing.quantize(torch.zeros(0, 8)), weights).shape == (0, 4)


def test_packing_refuses_what_it_cannot_serve_with_the_numbers() -> None:
    wing, ones = open_wing("portable"), torch.ones(8)
    planes = torch.zeros(2, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        wing.pack([(planes[:, :6], ones)])
    with pytest.raises(ValueError, match=r"row_scale must be .*\[8\]"):
        wing.pack([(planes, torch.ones(4))])
    with pytest.raises(ValueError, match=r"planes must be .*\[\*, 8\]"):
        wing.pack([(planes, ones), (torch.zeros(2, 12, dtype=torch.uint8), ones)])
    with pytest.raises(ValueError, match="code 3"):
        wing.pack([(torch.full((2, 8), 0b00110000, dtype=torch.uint8), ones)])
    with pytest.raises(ValueError, match="at least one"):
        wing.pack([])


def test_a_linear_refuses_activations_of_another_width_and_a_wrong_residual() -> None:
    wing = open_wing("portable")
    weights = wing.pack([(torch.zeros(2, 8, dtype=torch.uint8), torch.ones(8))])
    with pytest.raises(ValueError, match="K=12 do not go with weights of K=8"):
        wing.ternary_linear(wing.quantize(torch.zeros(1, 12)), weights)
    with pytest.raises(ValueError, match="residual"):
        wing.ternary_linear(wing.quantize(torch.zeros(1, 8)), weights, torch.zeros(1, 7))
