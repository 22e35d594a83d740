from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import oracle
from triton_kernels.device import open_device
from triton_kernels.head import head, int8_rows, pack_table
from triton_kernels.ranking import top
from triton_kernels.rescore import rescored_top
from triton_kernels.selection import in_order, select, selects, sorted_by_torch

CPU = open_device(torch.device("cpu"))
RNG = np.random.default_rng(7)


def random(*shape: int) -> Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize(("num_rows", "vocab", "width"), [(1, 130, 100), (3, 257, 200), (66, 5, 64)])
def test_bf16_logits_are_the_products_of_bf16_operands(num_rows: int, vocab: int, width: int) -> None:
    x, gain, weight = random(num_rows, width), random(width), random(vocab, width).to(torch.bfloat16)
    table = pack_table(weight, embedding=True, head_dtype="bf16", device=CPU)
    assert table.exact is table.embedding
    got = head(x, gain, 1e-5, table, CPU)
    y = oracle.bf16(oracle.rms_norm(x.numpy(), gain.numpy(), 1e-5))
    # a value of y next to a rounding boundary may go either way: half of a bf16 step times one weight
    np.testing.assert_allclose(got.numpy(), y @ weight.double().numpy().T, rtol=0, atol=0.05)
    assert np.median(np.abs(got.numpy() - y @ weight.double().numpy().T)) < 1e-5


def test_a_row_has_the_same_logits_alone_and_in_company() -> None:
    x, gain, weight = random(70, 64), random(64), random(40, 64)
    for dtype in ("bf16", "int8"):
        table = pack_table(weight, embedding=False, head_dtype=dtype, device=CPU)
        together = head(x, gain, 1e-5, table, CPU)
        for row in (0, 65):
            assert torch.equal(head(x[row : row + 1], gain, 1e-5, table, CPU), together[row : row + 1])


def test_int8_logits_are_exact_sums_of_codes() -> None:
    x, gain, weight = random(3, 100), random(100), random(33, 100)
    weight[5] = 0
    table = pack_table(weight, embedding=False, head_dtype="int8", device=CPU)
    assert table.embedding is None
    codes, scale = oracle.quantize_head(weight.numpy())
    got_codes, got_scale = int8_rows(weight, chunk=8)
    np.testing.assert_array_equal(got_codes.numpy(), codes)
    np.testing.assert_array_equal(got_scale.numpy(), scale)
    # the norm of ones is one within rounding, so the codes of x are those of the oracle
    ones = torch.ones(3, 100) * torch.tensor([1.0, -1.0]).repeat(50)
    wanted = oracle.linear(*oracle.quantize(ones.numpy()), codes, scale)
    np.testing.assert_allclose(head(ones, torch.ones(100), 0.0, table, CPU).numpy(), wanted, rtol=1e-6)
    y = oracle.rms_norm(x.numpy(), gain.numpy(), 1e-5)
    wanted = oracle.linear(*oracle.quantize(y), codes, scale)
    np.testing.assert_allclose(head(x, gain, 1e-5, table, CPU).numpy(), wanted, rtol=0, atol=0.2)


def test_rescored_candidates_have_the_ids_and_bits_of_the_bf16_head() -> None:
    x, gain, weight = random(3, 100), random(100), random(300, 100)
    extra = torch.tensor([[7, -1], [299, 0], [-1, -1]])
    plain = pack_table(weight, embedding=False, head_dtype="bf16", device=CPU)
    both = pack_table(weight, embedding=False, head_dtype="int8-rescore", device=CPU)
    assert both.is_rescored
    assert not plain.is_rescored
    logits = head(x, gain, 1e-5, plain, CPU)
    assert torch.equal(head(x, gain, 1e-5, both, CPU), logits)
    for k in (1, 40, 400):
        ids, values = rescored_top(x, gain, 1e-5, both, k, extra, CPU)
        wanted_ids, wanted = top(logits, k, extra, CPU)
        assert torch.equal(ids, wanted_ids)
        assert torch.equal(values, wanted)
    with pytest.raises(ValueError, match="without a bf16 head"):
        rescored_top(x, gain, 1e-5, pack_table(weight, embedding=False, head_dtype="int8", device=CPU), 1, extra, CPU)


def test_int8_alone_would_choose_another_token_where_two_are_close() -> None:
    # what is below half a code of a row is nothing to int8: it takes the lower id, and bf16 knows better
    weight = torch.zeros(2, 64)
    weight[:, 0], weight[1, 1:] = 127, 0.4
    x, gain, extra = torch.ones(1, 64), torch.ones(64), torch.empty(1, 0, dtype=torch.int64)
    rough = pack_table(weight, embedding=False, head_dtype="int8", device=CPU)
    both = pack_table(weight, embedding=False, head_dtype="int8-rescore", device=CPU)
    best = top(head(x, gain, 1e-5, both, CPU), 1, extra, CPU)[0]
    assert best.tolist() == [[1]]
    assert torch.equal(rescored_top(x, gain, 1e-5, both, 1, extra, CPU)[0], best)
    assert top(head(x, gain, 1e-5, rough, CPU), 1, extra, CPU)[0].tolist() == [[0]]


def test_ties_go_to_the_lower_id_and_extras_follow() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 3.0, -0.0, 0.0, -torch.inf], [5.0, 5.0, 5.0, -1.0, 5.0, 6.0, -7.0]])
    extra = torch.tensor([[2, -1], [-1, 6]])
    for k in (1, 3, 6, 9):
        ids, values = top(logits, k, extra, CPU)
        wanted_ids, wanted = oracle.top_k(logits.numpy(), k, extra.numpy())
        np.testing.assert_array_equal(ids.numpy(), wanted_ids)
        np.testing.assert_array_equal(values.numpy(), wanted)


def test_top_of_random_logits_is_a_full_sort() -> None:
    logits = (random(4, 300) * 4).round()
    ids, values = top(logits, 40, torch.empty(4, 0, dtype=torch.int64), CPU)
    wanted_ids, wanted = oracle.top_k(logits.numpy(), 40, np.empty((4, 0), np.int64))
    np.testing.assert_array_equal(ids.numpy(), wanted_ids)
    np.testing.assert_array_equal(values.numpy(), wanted)


def test_the_best_of_any_logits_are_those_of_a_full_sort() -> None:
    # with ties, all equal, ascending (all the best in few groups) and descending: what makes many candidates
    rising = torch.arange(3000.0)
    rows = torch.stack([random(3000), (random(3000) * 2).round(), torch.zeros(3000), rising, -rising])
    extra = torch.from_numpy(RNG.integers(-1, 3000, (5, 3)))
    for k in (1, 2, 40, 65):
        ids, values = select(rows, k, extra, CPU)
        wanted_ids, wanted = oracle.top_k(rows.numpy(), k, extra.numpy())
        np.testing.assert_array_equal(ids.numpy(), wanted_ids)
        np.testing.assert_array_equal(values.numpy(), wanted)


def test_more_than_are_selected_are_sorted_by_torch() -> None:
    assert selects(256, 128256)
    assert not selects(257, 128256)
    assert not selects(1, 1 << 21)
    logits = (random(2, 400) * 4).round()
    ids, values = top(logits, 300, torch.tensor([[-1], [7]]), CPU)
    wanted_ids, wanted = oracle.top_k(logits.numpy(), 300, np.array([[-1], [7]]))
    np.testing.assert_array_equal(ids.numpy(), wanted_ids)
    np.testing.assert_array_equal(values.numpy(), wanted)


def test_candidates_are_put_in_order_as_torch_would() -> None:
    ids = torch.stack([torch.randperm(5000, generator=torch.Generator().manual_seed(row))[:73] for row in range(3)])
    ids[:, 70:] = torch.tensor([[-1, 4, 4999]])
    logits = (random(3, 73) * 2).round()
    for k in (1, 40, 70):
        for got, wanted in zip(in_order(ids, logits, k, 3, 5000, CPU), sorted_by_torch(ids, logits, k, 3), strict=True):
            assert torch.equal(got, wanted)


def test_nan_is_seen_first() -> None:
    for bad in (torch.nan, -torch.nan):
        for k in (1, 2):
            ids, values = top(torch.tensor([[1.0, torch.inf, bad]]), k, torch.empty(1, 0, dtype=torch.int64), CPU)
            assert ids.tolist() == [[2, 1][:k]]
            assert values[:, :1].isnan().all()


def test_what_cannot_be_packed_or_used_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bf16 or int8 or int8-rescore, not 'fp4'"):
        pack_table(random(4, 8), embedding=True, head_dtype="fp4", device=CPU)
    with pytest.raises(ValueError, match=r"not torch.float16 \[4, 8\]"):
        pack_table(random(4, 8).half(), embedding=True, head_dtype=None, device=CPU)
    table = pack_table(random(4, 8), embedding=True, head_dtype=None, device=CPU)
    with pytest.raises(ValueError, match="without a head"):
        head(random(1, 8), random(8), 1e-5, table, CPU)
    table = pack_table(random(4, 8), embedding=False, head_dtype="bf16", device=CPU)
    with pytest.raises(ValueError, match=r"rows of 8 values, not \[1, 9\]"):
        head(random(1, 9), random(9), 1e-5, table, CPU)
