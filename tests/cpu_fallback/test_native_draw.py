"""The plain chain of samplers in one native call: the tokens of a plain Python reading of it, in any company."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitnet_model.batch import DrawBatch
from cpu_fallback.native_handles import Table
from cpu_fallback.native_wing import NativeCpuWing
from service.engine.request import Request
from tests.cpu_fallback.native_support import every_isa, open_wing
from tests.service.engine.sampling_reference import reference_token, reference_uniform, request_of

VOCAB, WIDTH, ROWS = 300, 20, 64
GAIN = torch.ones(WIDTH)


def inputs(wing: NativeCpuWing) -> tuple[Table, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    weight[10:20] = weight[9]  # equal logits
    return wing.pack_table(weight, embedding=False, head_dtype="int8"), torch.randn(ROWS, WIDTH, generator=generator)


def requests_of_every_kind() -> list[Request]:
    pick = random.Random(3)
    requests = []
    for row in range(ROWS):
        tokens = [pick.randrange(40) for _ in range(pick.choice([1, 5, 30, 200]))]
        params = {
            "seed": row,
            "temperature": pick.choice([0.0, 0.3, 0.8, 2.0]),
            "top_k": pick.choice([1, 2, 40, 250, 1000]),
            "top_p": pick.choice([0.0, 0.2, 0.95, 1.0]),
            "min_p": pick.choice([0.0, 0.0, 0.05, 1.0]),
            "repeat_penalty": pick.choice([0.7, 1.0, 1.1, 3.0]),
            "presence_penalty": pick.choice([-1.0, 0.0, 0.5]),
            "frequency_penalty": pick.choice([-0.2, 0.0, 0.7]),
            "repeat_last_n": pick.choice([0, 3, 64, -1]),
            "logit_bias": pick.choice([(), (), ((4, 2.0), (250, -0.5)), ((3, -math.inf), (9, 4.0))]),
        }
        requests.append(request_of(tokens, **params))
    return requests


def batch_of(requests: list[Request], rounds: int = 1) -> DrawBatch:
    windows, starts, biases, bias_starts, rows, randoms = [], [0], [], [0], [], []
    for request in requests:
        p = request.params
        last_n = len(request.token_ids) + rounds if p.repeat_last_n < 0 else p.repeat_last_n
        windows += request.token_ids[max(0, len(request.token_ids) - last_n) :]
        starts.append(len(windows))
        biases += p.logit_bias
        bias_starts.append(len(biases))
        penalties = (p.repeat_penalty, p.presence_penalty, p.frequency_penalty)
        rows.append((p.temperature, p.top_k, p.top_p, p.min_p, *penalties, last_n))
        places = range(request.total, request.total + rounds)
        randoms.append([reference_uniform(p.seed, place, request.choice_index) for place in places])
    return DrawBatch(
        torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 8),
        torch.tensor(randoms, dtype=torch.float64).reshape(len(rows), rounds).T.contiguous(),
        torch.tensor(windows, dtype=torch.int64),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor([token_id for token_id, _ in biases], dtype=torch.int64),
        torch.tensor([bias for _, bias in biases], dtype=torch.float32),
        torch.tensor(bias_starts, dtype=torch.int32),
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
@every_isa
def test_a_head_in_halves_draws_what_the_whole_one_draws(isa: str, threads: int) -> None:
    wing = open_wing(isa, threads)
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(17000, WIDTH, generator=generator)  # 250 likeliest are few enough of them to be screened for
    weight[10:20] = weight[9]
    x = torch.randn(ROWS, WIDTH, generator=generator)
    whole, halves = (wing.pack_table(weight, embedding=False, head_dtype=dtype) for dtype in ("int8", "int4-rescore"))
    requests = [request for request in requests_of_every_kind() if request.params.top_k < 1000]
    x = x[: len(requests)]
    for rounds_of in (requests, requests[:1], requests[3:5]):
        draws = batch_of(rounds_of)
        expected = wing.head_draw(x[: len(rounds_of)], GAIN, 1e-5, whole, draws)
        assert torch.equal(wing.head_draw(x[: len(rounds_of)], GAIN, 1e-5, halves, draws), expected)


@every_isa
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_every_kind_draw_what_a_plain_reading_of_the_chain_draws(isa: str, threads: int) -> None:
    wing = open_wing(isa, threads)
    table, x = inputs(wing)
    requests = requests_of_every_kind()
    logits = wing.head(x, GAIN, 1e-5, table).numpy()
    expected = [reference_token(row, request) for row, request in zip(logits, requests, strict=True)]
    assert wing.head_draw(x, GAIN, 1e-5, table, batch_of(requests)).tolist() == expected
    assert len(set(expected)) > ROWS // 3


def test_a_row_draws_alone_what_it_draws_in_company() -> None:
    wing = open_wing("portable")
    table, x = inputs(wing)
    requests = requests_of_every_kind()
    together = wing.head_draw(x, GAIN, 1e-5, table, batch_of(requests)).tolist()
    for row, request in enumerate(requests):
        assert wing.head_draw(x[row : row + 1], GAIN, 1e-5, table, batch_of([request])).tolist() == [together[row]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_gone_bad_draws_nothing_and_harms_nobody(bad: float) -> None:
    wing = open_wing("portable")
    table, x = inputs(wing)
    draws = batch_of(requests_of_every_kind())
    clean = wing.head_draw(x, GAIN, 1e-5, table, draws).tolist()
    x[7, 3] = bad
    ids = wing.head_draw(x, GAIN, 1e-5, table, draws).tolist()
    assert ids == [*clean[:7], -1, *clean[8:]]


def test_a_row_whose_biases_forbid_every_token_draws_none_and_harms_nobody() -> None:
    wing = open_wing("portable")
    table, x = inputs(wing)
    nothing = tuple((token_id, -math.inf) for token_id in range(VOCAB))
    rows = [request_of([5]), request_of([5], logit_bias=nothing), request_of([5], logit_bias=nothing[1:])]
    ids = wing.head_draw(x[:3], GAIN, 1e-5, table, batch_of(rows)).tolist()
    alone = wing.head_draw(x[:1], GAIN, 1e-5, table, batch_of(rows[:1])).tolist()
    assert ids == [*alone, -2, 0]


def test_no_rows_are_no_tokens_and_what_does_not_fit_together_is_refused() -> None:
    wing = open_wing("portable")
    table, x = inputs(wing)
    assert wing.head_draw(x[:0], GAIN, 1e-5, table, batch_of([])).tolist() == []
    good = batch_of([request_of([5, 6], logit_bias=((1, 1.0),))])
    for name, value, words in (
        ("windows", torch.tensor([VOCAB, 1]), f"window token {VOCAB}"),
        ("bias_ids", torch.tensor([-1]), "biased token -1"),
        ("window_starts", torch.tensor([0, 1], dtype=torch.int32), "starts do not cut the windows"),
        ("window_starts", torch.tensor([1, 2], dtype=torch.int32), "starts do not cut the windows"),
        ("bias_starts", torch.tensor([0, 2], dtype=torch.int32), "starts do not cut the biases"),
        ("bias_starts", torch.tensor([1, 1], dtype=torch.int32), "starts do not cut the biases"),
        ("biases", torch.zeros(2), "starts do not cut the biases"),
        ("parameters", good.parameters[:, :7], r"parameters must be .*\[1, 8\]"),
        ("randoms", torch.zeros(1, 2, dtype=torch.float64), r"randoms must be .*\[\*, 1\]"),
        ("randoms", torch.zeros(2, 1, dtype=torch.float64), "one round"),
    ):
        with pytest.raises(ValueError, match=words):
            wing.head_draw(x[:1], GAIN, 1e-5, table, replace(good, **{name: value}))
    with pytest.raises(ValueError, match="2 rows need as many draws"):
        wing.head_draw(x[:2], GAIN, 1e-5, table, good)
