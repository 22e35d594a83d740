from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from bitnet_model.batch import DrawBatch
from service.engine.candidates import sort_by_rank
from service.engine.draws import num_ahead
from service.engine.penalties import NO_ID
from service.engine.plan import RowResult
from service.engine.request import Limits, Request, SamplingParams
from service.engine.sampler import ALL_BANNED, BANNED_ID, MAX_TOP, NOT_FINITE, sample
from tests.service.engine.sampling_reference import LogitTable, reference_token, reference_weights, request_of

VOCAB = 97
VALUES: dict[str, list[object]] = {
    "temperature": [0.0, 0.3, 0.8, 1.0, 2.0, 1e-6],
    "top_k": [0, -1, 1, 5, 40, 1000],
    "top_p": [0.0, 0.1, 0.5, 0.95, 1.0],
    "min_p": [0.0, 0.05, 0.5, 1.0],
    "typical_p": [0.0, 0.2, 0.9, 1.0],
    "repeat_penalty": [0.5, 1.0, 1.1, 3.0],
    "repeat_last_n": [-1, 0, 1, 5, 64],
    "presence_penalty": [-2.0, 0.0, 0.7],
    "frequency_penalty": [0.0, 0.3, 2.0],
    "logit_bias": [(), ((3, 5.0), (96, -math.inf)), ((0, -100.0), (7, 2.5), (50, 100.0))],
}
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0}


def random_row(rng: np.random.Generator, *, ties: bool) -> np.ndarray:
    row = rng.normal(scale=rng.choice([0.5, 3.0, 12.0]), size=VOCAB)
    return (np.round(row * 2) / 2 if ties else row).astype(np.float32)


def random_request(rng: np.random.Generator, **fixed: object) -> Request:
    params = {name: values[rng.integers(len(values))] for name, values in VALUES.items()} | fixed
    tokens = rng.integers(VOCAB, size=rng.integers(1, 90)).tolist()
    return request_of(tokens, choice_index=int(rng.integers(3)), seed=int(rng.integers(2**63)), **params)


def tokens_of(table: LogitTable, lines: list[int], requests: list[Request]) -> list[int]:
    results = sample(table, table.hidden(lines), requests)
    assert [result.error for result in results] == [None] * len(requests)
    return [result.token_id for result in results]


@pytest.mark.parametrize("seed", range(40))
def test_random_rows_agree_with_the_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = [random_request(rng) for _ in range(17)]
    rows = [random_row(rng, ties=seed % 2 == 0) for _ in requests]
    expected = [reference_token(row, request) for row, request in zip(rows, requests, strict=True)]
    assert tokens_of(LogitTable(np.stack(rows)), list(range(len(rows))), requests) == expected


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in VALUES for value in VALUES[name]])
def test_each_parameter_by_itself_agrees_with_the_plain_implementation(name: str, value: object) -> None:
    rng = np.random.default_rng(5)
    row = random_row(rng, ties=False)
    tokens = rng.integers(VOCAB, size=30).tolist()
    requests = [request_of(tokens, **(NEUTRAL | {name: value, "seed": seed})) for seed in range(60)]
    assert tokens_of(LogitTable(row[None]), [0] * 60, requests) == [reference_token(row, r) for r in requests]


@pytest.mark.parametrize(
    "params",
    [
        NEUTRAL,
        NEUTRAL | {"top_k": 12},
        NEUTRAL | {"top_p": 0.7},
        NEUTRAL | {"min_p": 0.1},
        NEUTRAL | {"typical_p": 0.6},
        NEUTRAL | {"temperature": 0.5},
        {},
    ],
)
def test_draws_have_the_probabilities_that_they_should(params: dict[str, object]) -> None:
    rng = np.random.default_rng(11)
    row = rng.normal(scale=1.5, size=30).astype(np.float32)
    tokens = [1, 2, 3, 2]
    num_draws = 6000
    requests = [request_of(tokens, **(params | {"seed": seed})) for seed in range(num_draws)]
    counts = Counter(tokens_of(LogitTable(row[None]), [0] * num_draws, requests))
    weights = dict(reference_weights(row, requests[0]))
    total = sum(weights.values())
    assert set(counts) <= set(weights)
    rare = sum(weight for weight in weights.values() if weight / total * num_draws < 5)
    cells = [(counts[i], w / total * num_draws) for i, w in weights.items() if w / total * num_draws >= 5]
    if rare:
        cells.append((num_draws - sum(seen for seen, _ in cells), rare / total * num_draws))
    chi_square = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    freedom = len(cells) - 1
    assert chi_square < freedom + 3.1 * math.sqrt(2 * freedom) + 5  # about p = 0.001


def test_a_row_draws_the_same_token_alone_and_in_any_company() -> None:
    rng = np.random.default_rng(3)
    requests = [random_request(rng) for _ in range(24)]
    table = LogitTable(np.stack([random_row(rng, ties=True) for _ in requests]))
    alone = [tokens_of(table, [line], [request])[0] for line, request in enumerate(requests)]
    for _ in range(20):
        company = rng.permutation(24)[: rng.integers(1, 25)].tolist()
        assert tokens_of(table, company, [requests[line] for line in company]) == [alone[line] for line in company]


def test_equal_logits_go_to_the_lower_id_also_when_zero_has_two_signs() -> None:
    row = np.full(VOCAB, -5.0, dtype=np.float32)
    row[[20, 30, 40]] = [-0.0, 0.0, -0.0]
    assert tokens_of(LogitTable(row[None]), [0], [request_of([1], temperature=0.0)]) == [20]


def test_a_greedy_row_without_penalties_asks_for_one_candidate() -> None:
    table = LogitTable(np.random.default_rng(0).normal(size=(1, VOCAB)))
    tokens_of(table, [0], [request_of([1, 2], temperature=0.0, repeat_penalty=1.0, top_k=0)])
    assert table.asked == [1]


def test_top_k_looks_past_the_largest_raw_logits_when_these_are_penalised() -> None:
    row = np.arange(VOCAB, dtype=np.float32)
    window = list(range(90, 97))
    request = request_of(window, temperature=0.0, repeat_penalty=100.0)
    assert tokens_of(LogitTable(row[None]), [0], [request]) == [89]


def test_a_window_of_minus_one_reaches_back_n_ctx_tokens() -> None:
    row = np.zeros(VOCAB, dtype=np.float32)
    row[[4, 5, 6]] = [3.0, 2.0, 1.0]
    tokens = [4, *[50] * 9, 5]
    for n_ctx, expected in ((12, 6), (100, 6)):
        request = request_of(tokens, n_ctx=n_ctx, temperature=0.0, repeat_penalty=1e6, repeat_last_n=-1)
        assert tokens_of(LogitTable(row[None]), [0], [request]) == [expected]
    request = request_of(tokens, temperature=0.0, repeat_penalty=1e6, repeat_last_n=10)
    assert tokens_of(LogitTable(row[None]), [0], [request]) == [4]


def test_a_wide_row_takes_its_whole_vocabulary_and_leaves_its_neighbours_alone() -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(3, 2 * MAX_TOP)).astype(np.float32)
    table = LogitTable(rows)
    requests = [request_of([1, 2, 3], top_k=top_k, top_p=1.0, seed=9) for top_k in (MAX_TOP + 5, 40, 0)]
    assert tokens_of(table, [0, 1, 2], requests) == [reference_token(r, q) for r, q in zip(rows, requests, strict=True)]
    assert table.asked == [43]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_k": 0}, NEUTRAL, {"logit_bias": ((3, -math.inf),)}])
def test_a_row_of_bad_logits_fails_alone(bad: float, params: dict[str, object]) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(3, VOCAB)).astype(np.float32)
    rows[1, 3] = bad
    if math.isnan(bad):
        rows[1, 4:] = bad
    good = LogitTable(rows[[0, 2]])
    requests = [request_of([3, 4, 5], seed=seed, **params) for seed in range(3)]
    table = LogitTable(rows)
    results = sample(table, table.hidden([0, 1, 2]), requests)
    assert [result.error for result in results] == [None, NOT_FINITE, None]
    assert [results[0].token_id, results[2].token_id] == tokens_of(good, [0, 1], [requests[0], requests[2]])


def test_a_hidden_state_that_is_not_finite_fails_its_row_whatever_the_logits() -> None:
    class Blind(LogitTable):
        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(torch.zeros_like(x))

    table = Blind(np.random.default_rng(0).normal(size=(1, VOCAB)))
    hidden = torch.tensor([[0.0], [math.nan], [math.inf], [-math.inf]])
    results = sample(table, hidden, [request_of([1])] * 4)
    assert [result.error for result in results] == [None, NOT_FINITE, NOT_FINITE, NOT_FINITE]


def test_finite_states_whose_sum_overflows_are_fine() -> None:
    class Blind(LogitTable):
        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(torch.zeros_like(x))

    table = Blind(np.random.default_rng(0).normal(size=(1, VOCAB)))
    results = sample(table, torch.full((1, 4), 3e38), [request_of([1])])
    assert results[0].error is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_every_token_is_banned_fails_alone(temperature: float) -> None:
    table = LogitTable(np.zeros((1, 5)))
    banned = tuple((token_id, -math.inf) for token_id in range(5))
    requests = [request_of([1], temperature=temperature, logit_bias=bias) for bias in (banned, banned[1:])]
    results = sample(table, table.hidden([0, 0]), requests)
    assert [result.error for result in results] == [ALL_BANNED, None]
    assert results[1].token_id == 0


def test_a_banned_token_is_never_drawn() -> None:
    row = np.zeros(6, dtype=np.float32)
    row[2] = 50.0
    requests = [request_of([2], seed=seed, logit_bias=((2, -math.inf),), **NEUTRAL) for seed in range(200)]
    assert set(tokens_of(LogitTable(row[None]), [0] * 200, requests)) == {0, 1, 3, 4, 5}


def test_no_rows_give_no_results() -> None:
    table = LogitTable(np.zeros((1, 5)))
    assert sample(table, torch.zeros((0, 1)), []) == []


class DrawingTable(LogitTable):
    """A table whose wing draws by itself: always token 4, or none for the line of bad logits."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__(table)
        self.drawn: list[tuple[list[int], DrawBatch]] = []
        self.draw = self.draw_four

    def draw_four(self, x: Tensor, draws: DrawBatch) -> Tensor:
        lines = x[:, 0].long().tolist()
        self.drawn.append((lines, draws))
        return torch.tensor([4 if torch.isfinite(self.table[line]).all() else -1 for line in lines])


def test_what_a_wing_can_draw_is_left_to_it_and_the_rest_is_drawn_here() -> None:
    table = DrawingTable(np.random.default_rng(2).normal(size=(3, VOCAB)))
    table.table[2, 7] = math.nan
    here: list[dict[str, object]] = [
        {"typical_p": 0.9},
        {"top_k": 0, "temperature": 1.0},
        {"top_k": MAX_TOP + 1},
        {"min_keep": 2},
    ]
    there: list[dict[str, object]] = [
        {"logit_bias": ((3, 1.0), (5, -math.inf))},
        {"temperature": 0.0, "top_k": 0},
        {"min_p": 0.2, "top_p": 0.1, "repeat_last_n": 2},
        {"repeat_penalty": 1.0},
    ]
    requests = [request_of([1, 2, 1], **params) for params in [*here, *there]]
    results = sample(table, table.hidden([0] * 4 + [0, 1, 0, 2]), requests)
    expected = [sample(LogitTable(table.table.numpy()), table.hidden([0]), [request])[0] for request in requests[:4]]
    assert results == [*expected, *[RowResult(4)] * 3, RowResult(NO_ID, NOT_FINITE)]
    ((lines, draws),) = table.drawn
    assert lines == [0, 1, 0, 2]
    assert draws.windows.tolist() == [*[1, 2, 1] * 2, 2, 1]
    assert draws.window_starts.tolist() == [0, 3, 6, 8, 8]
    assert draws.bias_ids.tolist() == [3, 5]
    assert draws.biases.tolist() == [1.0, -math.inf]
    assert draws.bias_starts.tolist() == [0, 2, 2, 2, 2]
    assert draws.parameters[2].tolist() == [0.8, 40, 0.1, 0.2, 1.1, 0, 0, 2]
    assert draws.randoms.shape == (1, 4)
    assert sample(table, table.hidden([0]), requests[5:6]) == [RowResult(4)]


def test_until_min_tokens_are_there_the_wing_is_told_that_no_end_may_be_drawn() -> None:
    table = DrawingTable(np.zeros((1, 5)))
    limits = Limits(n_ctx=100, n_batch=64, min_tokens=1, end_ids=(0, 3))
    request = Request("r", (1,), SamplingParams(seed=1, repeat_penalty=1.0), limits)
    assert num_ahead(request) == 1
    sample(table, table.hidden([0]), [request])
    request.num_computed = 1
    request.append(4)
    assert num_ahead(request) == 98
    sample(table, table.hidden([0]), [request])
    assert [draws.bias_ids.tolist() for _, draws in table.drawn] == [[0, 3], []]


def test_a_row_whose_biases_forbid_every_token_says_so() -> None:
    table = DrawingTable(np.zeros((1, 5)))
    table.draw = lambda x, draws: torch.tensor([BANNED_ID])
    assert sample(table, table.hidden([0]), [request_of([1])]) == [RowResult(NO_ID, ALL_BANNED)]


def test_extreme_logits_and_temperatures_give_a_token() -> None:
    rows = np.array([[3e38, -3e38, 0, 1], [1e-45, -1e-45, 0, -0.0], [-3e38] * 4], dtype=np.float32)
    table = LogitTable(rows)
    for params in itertools.product((5e-324, 1e-6, 2.0), (0.0, 1.0), (0.0, 1.0)):
        values = dict(zip(("temperature", "top_p", "typical_p"), params, strict=True))
        tokens_of(table, [0, 1, 2], [request_of([0], repeat_penalty=1.0, **values)] * 3)


def test_rank_order_is_that_of_a_plain_sort() -> None:
    rng = np.random.default_rng(1)
    logits = np.concatenate([rng.normal(size=40), [0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38]])
    logits = rng.permutation(np.tile(logits, 2)).astype(np.float32)
    ids = rng.permutation(len(logits)).astype(np.int64)
    expected = sorted(zip(ids.tolist(), logits.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    sorted_ids, sorted_logits = sort_by_rank(ids[None], logits[None])
    assert list(zip(sorted_ids[0].tolist(), sorted_logits[0].tolist(), strict=True)) == expected
