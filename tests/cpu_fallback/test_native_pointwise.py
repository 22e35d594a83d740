"""Norm, gate and quantize of the native wing: codes bit-equal to the definition, bad rows visible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cpu_fallback.native_support import (
    every_isa,
    normalize_by_definition,
    open_wing,
    quantize_by_definition,
)

WIDTHS = [4, 16, 20, 60, 64, 68, 260, 2560, 6912]


def awkward_rows(generator: torch.Generator, width: int) -> Tensor:
    """Random rows, a zero row, exact halves of the maximum, a maximum with a full mantissa, tiny and huge rows."""
    x = torch.randn(8, width, generator=generator)
    x[1] = 0
    x[2] = torch.tensor([1.0, 0.5, -0.5, 0.25]).repeat(width // 4)
    x[3, 0] = 254.0
    x[4] *= 1e-34
    x[5] *= 1e15
    x[6] = -7.0
    return x


@every_isa
@pytest.mark.parametrize("width", WIDTHS)
def test_plain_codes_scales_and_sums_are_those_of_the_definition(isa: str, width: int) -> None:
    wing = open_wing(isa)
    x = awkward_rows(torch.Generator().manual_seed(width), width)
    q = wing.quantize(x)
    codes, scale = quantize_by_definition(x.numpy())
    assert np.array_equal(q.codes[:, :width].numpy(), codes)
    assert not q.codes[:, width:].any()
    assert np.array_equal(q.scale.numpy(), scale)
    assert np.array_equal(q.sums.numpy(), codes.sum(-1, dtype=np.int32))


@every_isa
@pytest.mark.parametrize("width", WIDTHS)
def test_normed_codes_are_those_of_the_definition(isa: str, width: int) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(width)
    x, gain = awkward_rows(generator, width), torch.randn(width, generator=generator)
    gain[::3] = 1e-32  # dead channels
    q = wing.norm_quantize(x, gain, 1e-5)
    codes, scale = quantize_by_definition(normalize_by_definition(x.numpy(), gain.numpy(), 1e-5))
    assert np.array_equal(q.codes[:, :width].numpy(), codes)
    assert np.array_equal(q.scale.numpy(), scale)


@every_isa
@pytest.mark.parametrize("width", [4, 20, 1536])
@pytest.mark.parametrize("normed", [True, False])
def test_squared_relu_gate_codes_are_those_of_the_definition(isa: str, width: int, normed: bool) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(width)
    gate_up = torch.randn(5, 2 * width, generator=generator) * 80  # 2B-4T's gates reach 80: beyond fp16 after the gate
    gain = torch.randn(width, generator=generator)
    q = wing.gate_norm_quantize(gate_up, gain if normed else None, 1e-5, "relu2")
    gate, up = gate_up.numpy()[:, :width], gate_up.numpy()[:, width:]
    y = np.square(np.maximum(gate, 0)) * up
    codes, scale = quantize_by_definition(normalize_by_definition(y, gain.numpy(), 1e-5) if normed else y)
    assert np.array_equal(q.codes[:, :width].numpy(), codes)
    assert np.array_equal(q.scale.numpy(), scale)


@every_isa
def test_silu_is_within_rounding_of_float64_over_the_whole_range(isa: str) -> None:
    wing = open_wing(isa)
    gate = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([-0.0, 1e-30, -1e30])])
    for value in gate.view(-1, 4):  # four values a token: the scale of each token is the largest of them
        q = wing.gate_norm_quantize(torch.cat([value, torch.ones(4)])[None], None, 0.0, "silu")
        exact = value.double() * torch.sigmoid(value.double())
        largest = max(float(exact.abs().max()), 1e-5)
        assert abs(float(q.scale[0]) * 127 - largest) <= 4e-7 * largest, value


@every_isa
def test_a_nan_or_infinity_shows_in_its_own_scale_only(isa: str) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(4)
    x, gain = torch.randn(6, 36, generator=generator), torch.ones(36)
    for poison in (float("nan"), float("inf"), -float("inf")):
        for column in (0, 17, 35):
            bad = x.clone()
            bad[2, column] = poison
            for good, q in (
                (wing.quantize(x), wing.quantize(bad)),
                (wing.norm_quantize(x, gain, 1e-5), wing.norm_quantize(bad, gain, 1e-5)),
                (
                    wing.gate_norm_quantize(x, gain[:18], 1e-5, "silu"),
                    wing.gate_norm_quantize(bad, gain[:18], 1e-5, "silu"),
                ),
            ):
                others = [0, 1, 3, 4, 5]
                assert torch.equal(q.codes[others], good.codes[others])
                assert torch.equal(q.scale[others], good.scale[others])
                assert not q.scale[2].isfinite()


@every_isa
def test_embedding_rows_are_within_a_32nd_of_an_int8_step_of_the_table(isa: str) -> None:
    wing, generator = open_wing(isa), torch.Generator().manual_seed(5)
    weight = torch.randn(37, 20, generator=generator).to(torch.bfloat16)
    weight[3] = 0
    table = wing.pack_table(weight, embedding=True, head_dtype=None)
    ids = torch.tensor([0, 3, 36, 17, 36])
    rows, exact = wing.embed(table, ids), weight.float()[ids]
    step = exact.abs().amax(-1, keepdim=True) / 127
    assert ((rows - exact).abs() <= 0.0313 * step).all()
    assert not rows[1].any()


def test_ids_outside_the_vocabulary_are_refused() -> None:
    wing = open_wing("portable")
    table = wing.pack_table(torch.ones(5, 4), embedding=True, head_dtype=None)
    for bad in (5, -1):
        with pytest.raises(ValueError, match=rf"token id {bad} at 1 is not in 0\.\.4"):
            wing.embed(table, torch.tensor([0, bad]))


def test_a_table_packed_as_a_head_only_has_no_rows_to_look_up() -> None:
    wing = open_wing("portable")
    table = wing.pack_table(torch.ones(5, 4), embedding=False, head_dtype="int8")
    with pytest.raises(ValueError, match="not packed as an embedding"):
        wing.embed(table, torch.tensor([0]))


def test_gates_of_odd_width_and_unknown_acts_are_refused() -> None:
    wing = open_wing("portable")
    with pytest.raises(ValueError, match="7 columns"):
        wing.gate_norm_quantize(torch.ones(1, 7), None, 0.0, "relu2")
    with pytest.raises(ValueError, match="gelu"):
        wing.gate_norm_quantize(torch.ones(1, 8), None, 0.0, "gelu")  # type: ignore[arg-type]
