"""Rows with a mask against the plain sampler on logits of which the mask has cut what it does not allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from service.engine.grammar import MatcherError
from service.engine.masks import MAX_LISTED
from service.engine.request import Request
from service.engine.sampler import NOT_FINITE, sample
from tests.service.engine.sampling_reference import LogitTable, reference_token, request_of

VOCAB = 700
VALUES: dict[str, list[object]] = {
    "temperature": [0.0, 0.7, 1.5],
    "top_k": [0, 1, 5, 40],
    "top_p": [0.5, 0.95, 1.0],
    "min_p": [0.0, 0.05],
    "typical_p": [0.9, 1.0],
    "repeat_penalty": [1.0, 1.1, 3.0],
    "presence_penalty": [0.0, 0.7],
    "frequency_penalty": [0.0, 0.3],
    "logit_bias": [(), ((3, 5.0), (96, -math.inf)), ((0, -100.0), (7, 2.5), (500, 100.0))],
}


class FixedMask:
    """A matcher that stands still."""

    def __init__(self, allowed: Sequence[int]) -> None:
        self._mask = np.zeros(VOCAB, dtype=np.bool_)
        self._mask[list(allowed)] = True

    def mask(self) -> np.ndarray:
        return self._mask

    def advance(self, token_id: int) -> None:
        raise AssertionError("sampling looks, and does not move on")


class Broken:
    def mask(self) -> np.ndarray:
        raise MatcherError("the grammar cannot go on")

    def advance(self, token_id: int) -> None:
        raise AssertionError


def random_request(rng: np.random.Generator, num_allowed: int | None) -> Request:
    params = {name: values[rng.integers(len(values))] for name, values in VALUES.items()}
    tokens = rng.integers(VOCAB, size=rng.integers(1, 90)).tolist()
    request = request_of(tokens, seed=int(rng.integers(2**63)), **params)
    if num_allowed is not None:
        request.matcher = FixedMask(rng.permutation(VOCAB)[:num_allowed].tolist())
    return request


def expected(row: np.ndarray, request: Request) -> int:
    mask = None if request.matcher is None else request.matcher.mask()
    return reference_token(row if mask is None else np.where(mask, row, -np.inf), request)


# One, a few, the most that are listed and one more, nearly all; None for a row without a grammar.
SIZES = [1, 2, 30, None, MAX_LISTED, MAX_LISTED + 1, None, VOCAB - 20, VOCAB]


@pytest.mark.parametrize("seed", range(30))
def test_masked_and_plain_rows_together_agree_with_the_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [SIZES[place] for place in rng.permutation(len(SIZES))[: rng.integers(1, len(SIZES) + 1)]]
    requests = [random_request(rng, size) for size in sizes]
    table = LogitTable(rng.normal(scale=3.0, size=(len(requests), VOCAB)).round(1 + seed % 3))
    results = sample(table, table.hidden(range(len(requests))), requests)
    rows = table.table.numpy()
    assert [result.error for result in results] == [None] * len(requests)
    assert [result.token_id for result in results] == [
        expected(row, request) for row, request in zip(rows, requests, strict=True)
    ]


def test_a_mask_that_leaves_too_few_of_the_likeliest_reads_the_whole_vocabulary_for_its_row_alone() -> None:
    row = np.linspace(10.0, -10.0, VOCAB)
    masked, plain = (request_of([1], temperature=0.0, repeat_penalty=1.0) for _ in range(2))
    masked.matcher = FixedMask(range(VOCAB - MAX_LISTED - 1, VOCAB))
    table = LogitTable(np.stack([row, row]))
    results = sample(table, table.hidden([0, 1]), [masked, plain])
    assert [result.token_id for result in results] == [VOCAB - MAX_LISTED - 1, 0]
    assert table.asked == [1]  # the plain row was asked for no more than by itself


def test_the_likeliest_token_of_a_short_mask_needs_no_second_pass() -> None:
    row = np.linspace(10.0, -10.0, VOCAB)
    masked, plain = (request_of([1], temperature=0.0, repeat_penalty=1.0) for _ in range(2))
    masked.matcher = FixedMask([600, 650])
    table = LogitTable(np.stack([row, row]))
    table.logits = None  # type: ignore[method-assign, assignment]
    table.top_logits = LogitTable(np.stack([row, row])).top_logits  # type: ignore[method-assign]
    assert [r.token_id for r in sample(table, table.hidden([0, 1]), [masked, plain])] == [600, 0]


@pytest.mark.parametrize("allowed", [[7], [7, 8, 9], list(range(MAX_LISTED + 9))])
def test_a_grammar_is_stronger_than_biases_that_forbid_all_it_allows(allowed: list[int]) -> None:
    row = np.zeros(VOCAB)
    row[8 if 8 in allowed else 7] = 1.0
    for temperature in (0.0, 0.01):
        request = request_of([1], temperature=temperature, logit_bias=tuple((token, -math.inf) for token in allowed))
        request.matcher = FixedMask(allowed)
        table = LogitTable(row[None])
        assert sample(table, table.hidden([0]), [request])[0].token_id == (8 if 8 in allowed else 7)


def test_a_grammar_that_fails_fails_its_row_alone() -> None:
    broken, plain = (request_of([1], temperature=0.0, repeat_penalty=1.0) for _ in range(2))
    broken.matcher = Broken()
    table = LogitTable(np.linspace(10.0, -10.0, VOCAB)[None])
    failed, fine = sample(table, table.hidden([0, 0]), [broken, plain])
    assert (failed.error, failed.is_grammar) == ("the grammar cannot go on", True)
    assert (fine.token_id, fine.error) == (0, None)


def test_logits_that_are_no_numbers_fail_a_masked_row_too() -> None:
    request = request_of([1], temperature=0.0)
    request.matcher = FixedMask([3, 5])
    row = np.zeros(VOCAB)
    row[5] = np.nan
    table = LogitTable(row[None])
    (result,) = sample(table, table.hidden([0]), [request])
    assert (result.error, result.is_grammar) == (NOT_FINITE, False)
