"""The output head: exact int8 logits, and the k largest with ties to the lower id."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpu_fallback import head as head_module
from cpu_fallback.head import _largest
from cpu_fallback.linear import Form
from cpu_fallback.threads import WorkPool
from tests import oracle
from tests.cpu_fallback.wings import FORMS, normal, wing

# H beyond 1040 needs more than one exact piece in fp32.
SHAPES = [(1, 5, 4), (3, 67, 100), (2, 301, 2560), (65, 33, 1044)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("R", "V", "H"), SHAPES)
def test_logits_equal_the_oracle_bit_for_bit(R: int, V: int, H: int, form: Form) -> None:
    x, gain, weight = normal(1, R, H), normal(2, H), normal(3, V, H).bfloat16()
    weights, row_scale = oracle.quantize_head(weight.float().numpy())
    with wing(2, form) as ops:
        table = ops.pack_table(weight, embedding=False, head_dtype="int8")
        logits = ops.head(x, gain, 1e-5, table)
        q = ops.norm_quantize(x, gain, 1e-5)
        assert ops.memory_bytes(table) == V * H + 4 * V
    codes = q.codes.numpy().astype(np.int64)
    assert table.codes is not None
    assert np.array_equal(table.codes.numpy(), weights)
    assert np.array_equal(logits.numpy(), oracle.linear(codes, q.scale[:, 0].numpy(), weights, row_scale))


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_head_sums_are_exact(form: Form) -> None:
    H = 4096
    with wing(1, form) as ops:
        table = ops.pack_table(torch.full((4, H), 2.0), embedding=False, head_dtype="int8")
        logits = ops.head(torch.ones(1, H), torch.ones(H), 0.0, table)
    np.testing.assert_allclose(logits.numpy(), np.full((1, 4), 2.0 * H), rtol=3e-7)


def test_a_tied_table_serves_both_and_a_row_of_zeros_has_logit_zero() -> None:
    weight = normal(1, 9, 8).bfloat16()
    weight[4] = 0
    with wing() as ops:
        table = ops.pack_table(weight, embedding=True, head_dtype="int8")
        assert torch.equal(ops.embed(table, torch.tensor([2])), weight[[2]].float())
        assert ops.head(normal(2, 3, 8), torch.ones(8), 1e-5, table)[:, 4].tolist() == [0.0] * 3


@pytest.mark.parametrize("k", [0, 1, 5, 66, 67, 500])
def test_the_k_largest_and_the_extra_ids_equal_the_oracle(k: int) -> None:
    x, gain, weight = normal(1, 4, 32), normal(2, 32), normal(3, 67, 32).bfloat16()
    weight[40:60] = weight[7]  # ties
    extra = torch.tensor([[0, -1, 66], [5, 5, -1], [-1, -1, -1], [66, 41, 7]])
    with wing() as ops:
        table = ops.pack_table(weight, embedding=False, head_dtype="int8")
        ids, values = ops.head_topk(x, gain, 1e-5, table, k, extra)
        logits = ops.head(x, gain, 1e-5, table)
    expected_ids, expected = oracle.top_k(logits.numpy(), min(k, 67), extra.numpy())
    assert np.array_equal(ids.numpy(), expected_ids)
    assert np.array_equal(values.numpy(), expected)


def test_ties_at_every_place_go_to_the_lower_id() -> None:
    block = torch.from_numpy(np.random.default_rng(1).integers(0, 4, (20, 97)).astype(np.float32))
    block[3] = 0.0
    block[4, ::2] = -0.0
    pool = WorkPool(1)
    for k in (1, 2, 13, 96, 97):
        ids, values = _largest(block, k, pool)
        expected_ids, expected = oracle.top_k(block.numpy(), k, np.empty((20, 0), np.int64))
        assert np.array_equal(ids.numpy(), expected_ids)
        assert np.array_equal(values.numpy(), expected)
    pool.close()


def test_rows_are_the_same_alone_in_company_and_in_several_turns() -> None:
    R = 6
    x, gain, weight = normal(1, R, 8), normal(2, 8), normal(3, 1 << 20, 8).bfloat16()
    assert R * len(weight) > head_module.ROW_VALUES
    extra = torch.arange(R).view(R, 1)
    with wing(2) as ops:
        table = ops.pack_table(weight, embedding=False, head_dtype="int8")
        ids, values = ops.head_topk(x, gain, 1e-5, table, 40, extra)
        ops.set_threads(1)
        for i in (0, 5):
            one = ops.head_topk(x[i : i + 1], gain, 1e-5, table, 40, extra[i : i + 1])
            assert torch.equal(one[0][0], ids[i])
            assert torch.equal(one[1][0], values[i])


def test_no_rows_give_no_logits() -> None:
    with wing() as ops:
        table = ops.pack_table(normal(3, 16, 8), embedding=False, head_dtype="int8")
        ids, values = ops.head_topk(torch.empty(0, 8), torch.ones(8), 1e-5, table, 3, torch.empty(0, 2).long())
        assert ids.shape == values.shape == (0, 5)
        assert ops.head(torch.empty(0, 8), torch.ones(8), 1e-5, table).shape == (0, 16)


def test_a_nan_row_has_nan_logits_and_leaves_the_others() -> None:
    x, extra = normal(1, 3, 8), torch.zeros(3, 1, dtype=torch.int64)
    with wing() as ops:
        table = ops.pack_table(normal(3, 16, 8), embedding=False, head_dtype="int8")
        clean = ops.head_topk(x, torch.ones(8), 1e-5, table, 4, extra)
        x[1, 1] = torch.nan
        ids, values = ops.head_topk(x, torch.ones(8), 1e-5, table, 4, extra)
    assert bool(values[1].isnan().all())
    assert torch.equal(ids[[0, 2]], clean[0][[0, 2]])
    assert torch.equal(values[[0, 2]], clean[1][[0, 2]])


def test_what_the_head_cannot_serve_is_refused() -> None:
    with wing() as ops:
        with pytest.raises(ValueError, match="head dtype int8, not 'bf16'"):
            ops.pack_table(normal(1, 4, 4), embedding=False, head_dtype="bf16")
        with pytest.raises(ValueError, match=r"float16 \[4, 4\]"):
            ops.pack_table(normal(1, 4, 4).half(), embedding=True, head_dtype=None)
        weight = normal(1, 8, 4)
        weight[6, 1] = torch.inf
        with pytest.raises(ValueError, match="row 6 of the output head is not finite"):
            ops.pack_table(weight, embedding=False, head_dtype="int8")
        lookup = ops.pack_table(normal(1, 4, 4), embedding=True, head_dtype=None)
        with pytest.raises(ValueError, match="without a head"):
            ops.head(normal(1, 1, 4), torch.ones(4), 1e-5, lookup)
        with pytest.raises(ValueError, match="without an embedding"):
            ops.embed(ops.pack_table(normal(1, 4, 4), embedding=False, head_dtype="int8"), torch.tensor([0]))
