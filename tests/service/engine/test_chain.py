from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from service.engine.breakers import Breakers
from service.engine.request import SAMPLERS, Request
from service.engine.sampler import ALL_BANNED, MAX_TOP, NOT_FINITE, sample
from tests.service.engine.chain_reference import reference_chain
from tests.service.engine.sampling_reference import LogitTable, reference_token, request_of

VOCAB = 97
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0}
VALUES: dict[str, list[object]] = {
    "temperature": [0.0, 0.3, 0.8, 1.0, 2.0],
    "top_k": [0, 1, 5, 40, 1000],
    "top_p": [0.0, 0.5, 0.95, 1.0],
    "min_p": [0.0, 0.05, 0.5],
    "typical_p": [0.2, 0.9, 1.0],
    "repeat_penalty": [0.5, 1.0, 1.1, 3.0],
    "repeat_last_n": [-1, 0, 5, 64],
    "presence_penalty": [-2.0, 0.0, 0.7],
    "frequency_penalty": [0.0, 0.3],
    "logit_bias": [(), (), ((3, 5.0), (96, -math.inf))],
    "min_keep": [0, 1, 3, 20, 2000],
    "dynatemp_range": [0.0, 0.3, 2.0],
    "dynatemp_exponent": [0.0, 0.5, 1.0, 3.0],
    "top_n_sigma": [-1.0, 0.0, 0.5, 1.0, 3.0],
    "xtc_probability": [0.0, 0.5, 1.0],
    "xtc_threshold": [0.0, 0.02, 0.1, 0.5, 0.6],
    "dry_multiplier": [0.0, 0.8, 5.0],
    "dry_base": [1.0, 1.75],
    "dry_allowed_length": [0, 1, 2, 4],
    "dry_penalty_last_n": [-1, 0, 3, 30],
    "dry_sequence_breakers": [(), ("b",), ("ab", "zz")],
    "mirostat": [0, 0, 1, 2],
    "mirostat_tau": [0.5, 3.0, 5.0],
    "mirostat_eta": [0.1, 1.0],
}


def spell(token_id: int) -> bytes:
    """Tokens of one, two or no letters."""
    return [b"a", b"b", b"xa", b"", b"bz", b"z", b"cab", b"q"][token_id % 8]


def random_order(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.random() < 0.4:
        return SAMPLERS
    return tuple(rng.choice(SAMPLERS, size=rng.integers(0, 12)).tolist())


def random_request(rng: np.random.Generator, **fixed: object) -> Request:
    params = {name: values[rng.integers(len(values))] for name, values in VALUES.items()}
    params |= {"samplers": random_order(rng), **fixed}
    tokens = rng.integers(6, size=rng.integers(1, 60)).tolist()  # few different ones, so that they repeat
    request = request_of(tokens, choice_index=int(rng.integers(3)), seed=int(rng.integers(2**63)), **params)
    request.breakers = Breakers(request.params.dry_sequence_breakers, spell)
    request.mu *= rng.choice([0.3, 1.0, 1.5])
    return request


def random_row(rng: np.random.Generator, *, ties: bool = False) -> np.ndarray:
    row = rng.normal(scale=rng.choice([0.5, 3.0, 12.0]), size=VOCAB)
    return (np.round(row * 2) / 2 if ties else row).astype(np.float32)


def chosen(rows: np.ndarray, requests: list[Request]) -> list[int]:
    """The tokens of requests, one for each row of logits, or all of one row."""
    table = LogitTable(np.atleast_2d(rows))
    lines = list(range(len(requests))) if rows.ndim == 2 else [0] * len(requests)
    results = sample(table, table.hidden(lines), requests)
    assert [result.error for result in results] == [None] * len(requests)
    return [result.token_id for result in results]


@pytest.mark.parametrize("seed", range(60))
def test_random_rows_agree_with_the_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = [random_request(rng) for _ in range(17)]
    rows = np.stack([random_row(rng, ties=seed % 2 == 0) for _ in requests])
    table = LogitTable(rows)
    results = sample(table, table.hidden(range(17)), requests)
    for row, request, result in zip(rows, requests, results, strict=True):
        token_id, mu = reference_chain(row, request, spell)
        assert (result.error, result.token_id) == (None, token_id), request.params
        assert result.mu == (mu if mu is None else pytest.approx(mu, rel=1e-9, abs=1e-9))


@pytest.mark.parametrize(
    "params",
    [
        {"min_keep": 5, "top_p": 0.01},
        {"min_keep": 5, "top_k": 2},
        {"min_keep": 5, "min_p": 0.9},
        {"min_keep": 5, "typical_p": 0.01},
        {"min_keep": 5, "top_n_sigma": 0.01},
        {"dynatemp_range": 0.7, "dynatemp_exponent": 2.0},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 0.6, "xtc_threshold": 0.05},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1},
        {"mirostat": 1, "mirostat_tau": 2.0},
        {"mirostat": 2, "mirostat_tau": 2.0},
        {"samplers": ("temperature", "top_p"), "temperature": 0.4, "top_p": 0.8},
        {"samplers": ("min_p", "penalties", "temperature"), "min_p": 0.1, "repeat_penalty": 1.5, "temperature": 0.7},
    ],
)
def test_each_sampler_by_itself_agrees_with_the_plain_implementation(params: dict[str, object]) -> None:
    rng = np.random.default_rng(5)
    row = rng.normal(scale=2.0, size=VOCAB).astype(np.float32)
    tokens = [1, 2, 3, 4, 1, 2, 3, 9, 1, 2]
    requests = [request_of(tokens, **(NEUTRAL | params | {"seed": seed})) for seed in range(80)]
    assert chosen(row, requests) == [reference_chain(row, request)[0] for request in requests]


def test_rows_of_a_plain_and_of_a_general_chain_draw_in_company_what_they_draw_alone() -> None:
    rng = np.random.default_rng(3)
    requests = [random_request(rng) for _ in range(16)]
    plain = {name: value for name, value in NEUTRAL.items() if name != "top_k"}
    requests += [request_of(rng.integers(VOCAB, size=9).tolist(), top_k=20, seed=i, **plain) for i in range(8)]
    rows = np.stack([random_row(rng, ties=True) for _ in requests])
    alone = [chosen(row, [request])[0] for row, request in zip(rows, requests, strict=True)]
    for _ in range(15):
        company = rng.permutation(24)[: rng.integers(1, 25)].tolist()
        assert chosen(rows[company], [requests[line] for line in company]) == [alone[line] for line in company]


def test_a_chain_that_asks_for_nothing_more_draws_what_the_fixed_one_draws() -> None:
    rng = np.random.default_rng(4)
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty")
    for _ in range(200):
        params = {name: VALUES[name][rng.integers(len(VALUES[name]))] for name in names}
        tokens, seed = rng.integers(VOCAB, size=20).tolist(), int(rng.integers(2**63))
        general = request_of(tokens, seed=seed, xtc_probability=1.0, xtc_threshold=0.9, **params)
        fixed = request_of(tokens, seed=seed, **params)
        row = random_row(rng)
        assert (general.is_plain, fixed.is_plain) == (False, True)
        assert chosen(row, [general]) == chosen(row, [fixed]) == [reference_token(row, fixed)]


def test_the_order_of_samplers_matters() -> None:
    row = np.log(np.array([0.5, 0.3, 0.1, 0.06, 0.04], dtype=np.float32))
    params = NEUTRAL | {"temperature": 2.0, "top_p": 0.75}
    before = [request_of([0], samplers=("top_p", "temperature"), seed=seed, **params) for seed in range(400)]
    after = [request_of([0], samplers=("temperature", "top_p"), seed=seed, **params) for seed in range(400)]
    assert set(chosen(row, before)) == {0, 1}
    assert set(chosen(row, after)) == {0, 1, 2}


def test_a_sampler_that_is_not_in_the_order_does_not_act() -> None:
    row = np.array([3.0, 2.0, 1.0], dtype=np.float32)
    params = {"top_k": 1, "repeat_penalty": 1e6, "top_p": 0.0}
    requests = [request_of([0], samplers=(), seed=seed, **params) for seed in range(200)]
    counts = Counter(chosen(row, requests))
    assert counts[0] > counts[1] > counts[2] > 0


@pytest.mark.parametrize("samplers", [SAMPLERS, (), ("xtc", "temperature"), ("temperature", "xtc", "top_k")])
def test_temperature_0_takes_the_largest_logit_whatever_the_order(samplers: tuple[str, ...]) -> None:
    row = np.array([1.0, 4.0, 3.9], dtype=np.float32)
    extras = {"xtc_probability": 1.0, "xtc_threshold": 0.0, "mirostat": 2, "dynatemp_range": 1.0}
    request = request_of([0], samplers=samplers, temperature=0.0, typical_p=0.1, repeat_penalty=1.0, **extras)
    assert chosen(row, [request]) == [1]


def test_a_cut_leaves_min_keep_tokens_that_stay_possible() -> None:
    row = np.array([9.0, 8.9, 8.8, 8.7, 0.0], dtype=np.float32)
    requests = [request_of([0], min_keep=4, top_p=0.0, temperature=2.0, seed=seed) for seed in range(200)]
    assert set(chosen(row, requests)) == {0, 1, 2, 3}


def test_xtc_drops_the_top_choices_as_often_as_it_was_asked_to() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    params = NEUTRAL | {"xtc_threshold": 0.1, "xtc_probability": 0.25}
    counts = Counter(chosen(row, [request_of([0], seed=seed, **params) for seed in range(6000)]))
    share = (counts[0] + counts[1]) / 6000
    assert share == pytest.approx(0.75 * 0.8, abs=0.03)


def test_mirostat_steers_the_surprise_to_its_target() -> None:
    """Surprise among the tokens that were kept is what Mirostat observes; among all tokens it rises with the target."""
    rng = np.random.default_rng(7)
    rows = rng.normal(scale=1.5, size=(300, 500)).astype(np.float32)
    for version in (1, 2):
        totals = []
        for tau in (1.0, 3.0, 5.0):
            request = request_of([0], **(NEUTRAL | {"mirostat": version, "mirostat_tau": tau, "seed": 11}))
            total, start = 0.0, request.mu
            for row in rows:
                table = LogitTable(row[None])
                (result,) = sample(table, table.hidden([0]), [request])
                total -= math.log2(np.exp(row[result.token_id]) / np.exp(row).sum())
                request.advance(1)
                request.append(result.token_id, result.mu)
            observed = tau - (request.mu - start) / (request.params.mirostat_eta * len(rows))
            assert observed == pytest.approx(tau, abs=0.3)
            totals.append(total)
        assert totals == sorted(totals)
        assert totals[2] - totals[0] > 100


def test_a_row_that_is_run_again_is_drawn_again_alike_and_moves_mirostat_once() -> None:
    rng = np.random.default_rng(8)
    table = LogitTable(rng.normal(size=(1, 300)))
    request = request_of([0], mirostat=2, seed=3)
    before = request.mu
    results = [sample(table, table.hidden([0]), [request])[0] for _ in range(3)]
    assert results[0] == results[1] == results[2]
    assert request.mu == before
    request.advance(1)
    request.append(results[0].token_id, results[0].mu)
    request.rewind()
    assert request.mu == results[0].mu != before


def test_a_chain_that_begins_with_top_k_asks_for_no_more_than_that() -> None:
    table = LogitTable(np.random.default_rng(0).normal(size=(1, VOCAB)))
    for params, expected in [
        ({"top_k": 7, "min_keep": 3}, 7),
        ({"top_k": 7, "min_keep": 9}, 9),
        ({"top_k": 7, "xtc_probability": 1.0}, 7),
        ({"top_k": 7, "samplers": ("top_k", "penalties")}, 7),
        ({"temperature": 0.0, "top_k": 0, "dry_multiplier": 1.0}, 1),
    ]:
        request = request_of([1, 2], repeat_penalty=1.0, presence_penalty=0.0, **params)
        sample(table, table.hidden([0]), [request])
        assert table.asked.pop() == expected


def test_a_chain_that_looks_at_everything_gets_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20, 2 * MAX_TOP)).astype(np.float32)
    params = [
        {"top_n_sigma": 2.5},
        {"mirostat": 1},
        {"samplers": ("top_p", "top_k")},
        {"samplers": ("dry", "penalties")},
    ]
    requests = [request_of([1, 2, 1], dry_multiplier=1.0, seed=i, **params[i % 4]) for i in range(20)]
    assert chosen(rows, requests) == [reference_chain(r, q)[0] for r, q in zip(rows, requests, strict=True)]


def test_the_draws_of_one_token_are_different_numbers() -> None:
    """If xtc and the last draw shared a number, low ones would always go together."""
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    params = NEUTRAL | {"xtc_threshold": 0.25, "xtc_probability": 0.5}
    counts = Counter(chosen(row, [request_of([0], seed=seed, **params) for seed in range(4000)]))
    assert counts[0] / 4000 == pytest.approx(0.5 * 0.4, abs=0.03)
    assert counts[1] / 4000 == pytest.approx(0.5 * 0.3 + 0.5 * 0.5, abs=0.03)


@pytest.mark.parametrize("params", [{"mirostat": 1}, {"mirostat": 2}, {"top_n_sigma": 1.0}, {"dynatemp_range": 1.0}])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_logits_give_a_token(params: dict[str, object], scale: float) -> None:
    row = (np.random.default_rng(2).normal(size=50) * scale).astype(np.float32)
    for temperature in (1e-300, 2.0):
        for tau in (0.0, 100.0):
            request = request_of([0], temperature=temperature, mirostat_tau=tau, seed=1, **params)
            assert 0 <= chosen(row, [request])[0] < 50


def test_a_bad_row_fails_alone_in_the_general_chain_too() -> None:
    rows = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    rows[1, 3] = math.nan
    banned = tuple((token_id, -math.inf) for token_id in range(8))
    requests = [request_of([1], top_n_sigma=1.0), request_of([1], mirostat=2), request_of([1], xtc_probability=1.0)]
    requests[2] = request_of([1], xtc_probability=1.0, logit_bias=banned)
    table = LogitTable(rows)
    results = sample(table, table.hidden([0, 1, 2]), requests)
    assert [result.error for result in results] == [None, NOT_FINITE, ALL_BANNED]


def test_until_min_tokens_no_token_that_ends_is_chosen() -> None:
    row = np.array([9.0, 8.0, 1.0, 0.0], dtype=np.float32)
    table = LogitTable(row[None])
    request = request_of([3], temperature=0.0, repeat_penalty=1.0)
    limits = type(request.limits)(n_ctx=50, n_batch=8, min_tokens=2, end_ids=(0, 1))
    request = Request("r", (3,), request.params, limits)
    for _ in range(4):
        request.advance(1)
        request.append(sample(table, table.hidden([0]), [request])[0].token_id)
    assert request.token_ids == [3, 2, 2, 0, 0]
