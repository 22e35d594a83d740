"""Logprobs against a plain log-softmax, and through the engine: chunked, preempted, in company."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from service.engine.engine import Engine
from service.engine.logprobs import likeliest, score
from service.engine.plan import ScheduledRow
from service.engine.request import Delta, FinishReason, Limits, Logprobs, Report, Request, SamplingParams
from tests.service.engine.fakes import FakeTokenizer, endless, fake_logits, make_engine


def plainly(row: Sequence[float], token_id: int, num_top: int) -> Logprobs:
    """The same in plain Python, with sums that are rounded once."""
    logits = [float(x) for x in row]
    largest = max(logits)
    log_sum = math.log(math.fsum(math.exp(x - largest) for x in logits))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    top = tuple((i, logits[i] - largest - log_sum) for i in order[:num_top])
    rank = sum(x > logits[token_id] for x in logits) + 1
    return Logprobs(token_id, logits[token_id] - largest - log_sum, rank, top)


def close(one: Logprobs, other: Logprobs) -> bool:
    pairs = [(one.logprob, other.logprob), *zip([x for _, x in one.top], [x for _, x in other.top], strict=True)]
    same = (one.token_id, one.rank, [i for i, _ in one.top]) == (other.token_id, other.rank, [i for i, _ in other.top])
    return same and all(math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("size", [1, 2, 3, 50, 1000, 128_256])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e30])
def test_a_score_is_the_log_softmax_over_the_whole_vocabulary(size: int, scale: float) -> None:
    rng = np.random.default_rng(size)
    row = (rng.normal(size=size) * scale).astype(np.float32)
    for token_id, num_top in ((0, 0), (size - 1, 1), (int(row.argmax()), 20)):
        made = score(row, token_id, num_top)
        assert made is not None
        assert close(made, plainly(row.tolist(), token_id, num_top))


def test_probabilities_of_a_whole_vocabulary_add_up_to_one() -> None:
    row = np.random.default_rng(0).normal(scale=5, size=300).astype(np.float32)
    made = [score(row, token_id, 0) for token_id in range(300)]
    assert math.isclose(math.fsum(math.exp(one.logprob) for one in made if one), 1.0, rel_tol=1e-12)


def test_equal_logits_rank_by_id_and_share_a_rank() -> None:
    row = np.array([1, 3, 2, 3, 3, 2, 0], dtype=np.float32)
    assert likeliest(row, 2) == [1, 3]
    assert likeliest(row, 4) == [1, 3, 4, 2]
    assert likeliest(row, 99) == [1, 3, 4, 2, 5, 0, 6]
    assert likeliest(row, 0) == []
    assert [one.rank for token_id in (1, 4, 2, 6) if (one := score(row, token_id, 0))] == [1, 1, 4, 7]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 29])
def test_a_row_that_is_not_finite_has_no_score(bad: float, place: int) -> None:
    row = np.zeros(30, dtype=np.float32)
    row[place] = bad
    assert score(row, 3, 5) is None


def ask(
    id: str, text: str, report: Report, *, max_tokens: int = 6, n_batch: int = 64, choice_index: int = 0
) -> Request:
    limits = Limits(n_ctx=200, n_batch=n_batch, max_tokens=max_tokens)
    prompt_ids = tuple(FakeTokenizer().encode_text(text))
    return Request(id, prompt_ids, SamplingParams(seed=1), limits, choice_index, report=report)


def finish(engine: Engine, requests: Sequence[Request]) -> dict[str, Delta]:
    whole: dict[str, Delta] = {request.id: Delta() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for id, delta in engine.step():
            whole[id] = whole[id].then(delta)
        engine.check_integrity()
    assert engine.check_idle()
    return whole


def expected(token_ids: Sequence[int], num_prompt: int, report: Report) -> tuple[list[Logprobs], list[Logprobs]]:
    """Of the tokens after the prompt, and of the prompt's from the second on."""
    scores = [
        [plainly(fake_logits(token_ids[:i]).tolist(), token_ids[i], num_top or 0) for i in range(1, len(token_ids))]
        for num_top in (report.logprobs, report.prompt_logprobs)
    ]
    own = scores[0][num_prompt - 1 :] if report.logprobs is not None else []
    return own, scores[1][: num_prompt - 1] if report.prompt_logprobs is not None else []


@pytest.mark.parametrize("report", [Report(), Report(0), Report(3), Report(None, 0), Report(2, 5)], ids=str)
@pytest.mark.parametrize(
    "engine", [{}, {"n_batch": 5}, {"n_batch": 1}, {"num_blocks": 12, "n_batch": 7}], ids=lambda e: str(e)
)
def test_a_request_is_told_what_its_report_asks_for_however_it_is_computed(
    report: Report, engine: dict[str, Any]
) -> None:
    requests = [ask(str(i), f"this is prompt {i}" + "!" * 9 * i, report, max_tokens=40) for i in range(3)]
    made = make_engine(choose=endless, **engine)
    whole = finish(made, requests)
    if "num_blocks" in engine:
        assert made.stats()["preemptions"] > 0
    for request in requests:
        delta = whole[request.id]
        token_ids = [*request.prompt_ids, *delta.token_ids]
        own, of_prompt = expected(token_ids, len(request.prompt_ids), report)
        assert len(own) == len(delta.logprobs)
        assert len(of_prompt) == len(delta.prompt_logprobs)
        told = [*delta.logprobs, *delta.prompt_logprobs]
        assert all(close(one, other) for one, other in zip(told, [*own, *of_prompt], strict=True))


def test_after_a_preemption_only_what_was_not_told_yet_is_told() -> None:
    request = ask("a", "x" * 20, Report(prompt_logprobs=0))
    assert ScheduledRow(request, 0, 8, sample=False).scored == range(0, 8)
    request.num_scored = 8
    assert len(ScheduledRow(request, 0, 8, sample=False).scored) == 0
    assert ScheduledRow(request, 0, 12, sample=False).scored == range(8, 12)
    assert ScheduledRow(request, 12, 9, sample=True).scored == range(12, 20)
    request.num_scored = 20
    assert len(ScheduledRow(request, 0, 21, sample=True).scored) == 0


def test_a_prompt_is_told_even_where_nothing_is_generated() -> None:
    whole = finish(make_engine(n_batch=4), [ask("a", "hello there", Report(None, 2), max_tokens=0)])["a"]
    assert (whole.finish, whole.token_ids, len(whole.prompt_logprobs)) == (FinishReason.LENGTH, (), 11)
    assert finish(make_engine(), [ask("a", "", Report(1, 1), max_tokens=0)])["a"].prompt_logprobs == ()


def test_everything_of_the_prompt_comes_in_one_delta() -> None:
    engine = make_engine(n_batch=4, choose=endless)
    engine.add(ask("a", "hello there", Report(0, 0)))
    deltas = []
    while engine.has_work:
        deltas += [delta for _, delta in engine.step()]
    assert [(len(delta.prompt_logprobs), len(delta.logprobs)) for delta in deltas] == [(11, 1)] + [(0, 1)] * 5


def test_a_request_whose_prompt_is_told_computes_all_of_it_and_leaves_it_to_others() -> None:
    engine = make_engine(choose=endless)
    finish(engine, [ask("a", "x" * 40, Report())])
    assert finish(engine, [ask("b", "x" * 40, Report(1))])["b"].num_cached == 40
    whole = finish(engine, [ask("c", "x" * 40, Report(1, 1))])["c"]
    assert (whole.num_cached, len(whole.prompt_logprobs)) == (0, 40)
    assert finish(engine, [ask("d", "x" * 40, Report())])["d"].num_cached == 40


def test_logprobs_change_no_token_of_anybody() -> None:
    def tokens(reports: Sequence[Report]) -> list[tuple[int, ...]]:
        requests = [ask(str(i), "the same", report, choice_index=i) for i, report in enumerate(reports)]
        return [delta.token_ids for delta in finish(make_engine(), requests).values()]

    assert tokens([Report(5, 5), Report(), Report(0)]) == tokens([Report()] * 3)
