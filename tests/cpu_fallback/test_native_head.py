"""The native int8 head: exact sums, the k largest in the promised order, ids asked for by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cpu_fallback.native_handles import Table
from cpu_fallback.native_wing import NativeCpuWing
from tests.cpu_fallback.native_support import every_isa, normalize_by_definition, open_wing, quantize_by_definition

every_layout = pytest.mark.parametrize("head_dtype", ["int8", "int4-rescore"])
NONE = torch.zeros(1, 0, dtype=torch.int64)


def table_and_inputs(
    wing: NativeCpuWing, vocab: int, width: int, rows: int, head_dtype: str = "int8"
) -> tuple[Table, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab * width)
    weight = torch.randn(vocab, width, generator=generator)
    weight[vocab // 2] = 0
    weight[0] = torch.where(weight[0] > 0, 1.0, -1.0)  # codes of -127 and 127 only
    x, gain = torch.randn(rows, width, generator=generator), torch.randn(width, generator=generator)
    return wing.pack_table(weight, embedding=False, head_dtype=head_dtype), weight, x, gain


@every_isa
@every_layout
@pytest.mark.parametrize(("vocab", "width"), [(1, 4), (37, 20), (64, 64), (133, 548), (260, 2052)])
def test_logits_are_the_exact_integer_sums_times_the_scales(isa: str, head_dtype: str, vocab: int, width: int) -> None:
    wing = open_wing(isa)
    for rows in (1, 2, 3, 7, 8, 9, 17):
        table, weight, x, gain = table_and_inputs(wing, vocab, width, rows, head_dtype)
        codes, scale = quantize_by_definition(normalize_by_definition(x.numpy(), gain.numpy(), 1e-5))
        top = np.maximum(np.abs(weight.numpy()).max(-1), np.float32(1e-30))
        table_codes = np.rint(weight.numpy() * (np.float32(127) / top)[:, None])
        sums = codes.astype(np.int64) @ table_codes.astype(np.int64).T
        expected = sums.astype(np.float32) * (scale[:, None] * (np.abs(weight.numpy()).max(-1) / np.float32(127)))
        assert np.array_equal(wing.head(x, gain, 1e-5, table).numpy(), expected)


@every_isa
@every_layout
def test_the_largest_codes_do_not_saturate(isa: str, head_dtype: str) -> None:
    wing, width = open_wing(isa), 8192
    for sign in (1.0, -1.0):
        table = wing.pack_table(torch.full((16, width), sign), embedding=False, head_dtype=head_dtype)
        logits = wing.head(torch.ones(2, width), torch.ones(width), 0.0, table)
        assert torch.allclose(logits, torch.full((2, 16), sign * width), rtol=1e-5)


@every_isa
@every_layout
def test_the_k_largest_come_by_logit_then_id_and_extras_follow(isa: str, head_dtype: str) -> None:
    wing = open_wing(isa, threads=2)
    table, _, x, gain = table_and_inputs(wing, 133, 20, 5, head_dtype)
    logits = wing.head(x, gain, 1e-5, table)
    order = np.lexsort((np.broadcast_to(np.arange(133), (5, 133)), -logits.numpy()), axis=-1)
    extra = torch.tensor([[-1, 132], [0, 0], [7, -1], [-1, -1], [131, 2]])
    for k in (0, 1, 5, 64, 133, 1000):
        ids, values = wing.head_topk(x, gain, 1e-5, table, k, extra)
        wanted = torch.cat((torch.from_numpy(order[:, : min(k, 133)].copy()), extra), 1)
        assert torch.equal(ids, wanted)
        assert torch.equal(values, logits.gather(1, wanted.clamp_min(0)).masked_fill(wanted < 0, -torch.inf))


@every_layout
def test_equal_logits_go_to_the_lower_id(head_dtype: str) -> None:
    wing = open_wing("portable", threads=2)
    table = wing.pack_table(torch.ones(500, 8), embedding=False, head_dtype=head_dtype)
    ids, _ = wing.head_topk(torch.ones(1, 8), torch.ones(8), 1e-5, table, 7, NONE)
    assert ids.tolist() == [list(range(7))]


@every_isa
@pytest.mark.parametrize(("vocab", "width"), [(4100, 260), (2600, 2052), (8197, 20)])
def test_the_largest_of_a_head_in_halves_are_those_of_the_whole_one(isa: str, vocab: int, width: int) -> None:
    """Enough rows for a bound; two runs of ids and more; logits that lie close, and a row of equal ones."""
    wing = open_wing(isa)
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(vocab, width, generator=generator)
    weight[40:80] = weight[7] + 1e-3 * torch.randn(40, width, generator=generator)
    weight[81] = weight[80]
    whole, halves = (wing.pack_table(weight, embedding=True, head_dtype=dtype) for dtype in ("int8", "int4-rescore"))
    gain = torch.ones(width)
    for threads in (1, 2, 3):
        wing.set_threads(threads)
        for rows in (1, 2, 5, 17):
            x = torch.randn(rows, width, generator=generator)
            x[0], x[-1] = weight[7], 0
            extra = torch.randint(-1, vocab, (rows, 3), generator=generator)
            for k in (0, 1, 40):
                expected, found = (wing.head_topk(x, gain, 1e-5, table, k, extra) for table in (whole, halves))
                assert torch.equal(expected[0], found[0])
                assert torch.equal(expected[1], found[1])


def test_both_layouts_look_up_the_same_embedding_in_as_many_bytes() -> None:
    wing = open_wing("portable")
    weight = torch.randn(37, 132, generator=torch.Generator().manual_seed(1))
    whole, halves = (wing.pack_table(weight, embedding=True, head_dtype=dtype) for dtype in ("int8", "int4-rescore"))
    assert torch.equal(wing.embed(whole, torch.arange(37)), wing.embed(halves, torch.arange(37)))
    padding = 48 * (136 + 256) // 2 - 48 * 132
    assert wing.memory_bytes(halves) == wing.memory_bytes(whole) + padding


def test_a_head_is_kept_in_halves_where_it_is_large_and_its_rows_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    wing = open_wing("portable")
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(300, 256, generator=generator)
    outliers = normal.clone()
    outliers[:, 9] = 40.0

    def is_in_halves(weight: Tensor) -> bool:
        return wing.pack_table(weight, embedding=False, head_dtype="auto").low is not None

    assert not is_in_halves(normal)
    monkeypatch.setattr("cpu_fallback.halves.LEAST_VALUES", normal.numel())
    assert is_in_halves(normal)
    assert is_in_halves(normal.to(torch.bfloat16))
    assert not is_in_halves(outliers)


@every_isa
@every_layout
def test_a_row_gone_bad_shows_in_the_largest_logits_and_nowhere_else(isa: str, head_dtype: str) -> None:
    wing = open_wing(isa)
    table, _, x, gain = table_and_inputs(wing, 500, 20, 3, head_dtype)
    extra = torch.zeros(3, 0, dtype=torch.int64)
    clean = wing.head_topk(x, gain, 1e-5, table, 4, extra)[1]
    x[1, 3] = torch.nan
    ids, logits = wing.head_topk(x, gain, 1e-5, table, 4, extra)
    assert logits[1].isnan().all()
    assert ids[1].tolist() == [0, 1, 2, 3]
    assert torch.equal(logits[[0, 2]], clean[[0, 2]])


def test_bf16_and_f32_tables_of_the_same_values_are_the_same() -> None:
    wing = open_wing("portable")
    weight = torch.randn(19, 12, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    x, gain = torch.randn(2, 12), torch.ones(12)
    tables = [wing.pack_table(w, embedding=True, head_dtype="int8") for w in (weight, weight.float())]
    assert torch.equal(wing.head(x, gain, 1e-5, tables[0]), wing.head(x, gain, 1e-5, tables[1]))
    assert wing.memory_bytes(tables[0]) == 32 * 12 + 19 * 6 + 32 * 8


def test_what_the_head_cannot_serve_is_refused() -> None:
    wing = open_wing("portable")
    with pytest.raises(ValueError, match="'bf16' is not available: auto and int8 and int4-rescore are"):
        wing.pack_table(torch.ones(4, 4), embedding=False, head_dtype="bf16")
    with pytest.raises(ValueError, match="multiple of 4"):
        wing.pack_table(torch.ones(4, 6), embedding=False, head_dtype="int8")
    table = wing.pack_table(torch.ones(4, 8), embedding=False, head_dtype="int8")
    with pytest.raises(ValueError, match=r"x must be .*\[\*, 8\]"):
        wing.head(torch.ones(1, 4), torch.ones(8), 1e-5, table)
    with pytest.raises(ValueError, match="extra id 4"):
        wing.head_topk(torch.ones(1, 8), torch.ones(8), 1e-5, table, 1, torch.tensor([[4]]))
