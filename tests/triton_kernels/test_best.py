from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.triton_kernels.fake_capture import FakeCapture
from triton_kernels.best import BestTokens

CPU = torch.device("cpu")


def rank(x: Tensor, k: int, extra: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states are the logits themselves, all different or NaN."""
    ids = torch.cat([x.nan_to_num(nan=torch.inf, posinf=1e30).argsort(dim=1, descending=True)[:, :k], extra], dim=1)
    return ids, x.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)


def random(num_rows: int, vocab: int, num_extra: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab, generator=rng)
    return logits, torch.randint(-1, vocab, (num_rows, num_extra), generator=rng)


@pytest.mark.parametrize("vocab", [40, 300])
def test_every_row_gets_what_it_gets_uncaptured_whatever_was_there_before(vocab: int) -> None:
    best = BestTokens(rank, FakeCapture(), CPU, buckets=(1, 4))
    for seed, (num_rows, k, num_extra) in enumerate(
        [(4, 1, 0), (1, 70, 3), (3, 40, 66), (2, 40, 1), (4, 400, 0), (3, 1, 0), (1, 1, 64)]
    ):
        x, extra = random(num_rows, vocab, num_extra, seed)
        for got, wanted in zip(best(x, k, extra), rank(x, k, extra), strict=True):
            assert torch.equal(got, wanted)


def test_few_captures_serve_many_numbers_of_rows_tokens_and_ids() -> None:
    capture = FakeCapture()
    best = BestTokens(rank, capture, CPU, buckets=(1, 4))
    for num_rows, k, num_extra in ((3, 1, 0), (4, 64, 0), (2, 20, 0), (3, 65, 1), (3, 104, 64), (4, 1, 0)):
        best(*(lambda x, extra, k=k: (x, k, extra))(*random(num_rows, 200, num_extra, 0)))
    assert (capture.num_captures, capture.num_replays) == (3, 6)  # one token alone, a few, more with ids


def test_more_rows_than_the_largest_bucket_and_none_run_as_they_are() -> None:
    capture = FakeCapture()
    best = BestTokens(rank, capture, CPU, buckets=(1, 4))
    for num_rows in (0, 5):
        x, extra = random(num_rows, 30, 2, 1)
        for got, wanted in zip(best(x, 3, extra), rank(x, 3, extra), strict=True):
            assert torch.equal(got, wanted)
    assert capture.num_captures == 0


def test_nan_and_infinity_come_through_the_copy() -> None:
    x = torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf]])
    ids, logits = BestTokens(rank, FakeCapture(), CPU)(x, 4, torch.tensor([[-1, 3]]))
    assert ids.tolist() == [[1, 2, 0, 3, -1, 3]]
    assert logits[0, 0].isnan()
    assert logits[0, 1:].tolist() == [torch.inf, 1.0, -torch.inf, -torch.inf, -torch.inf]
