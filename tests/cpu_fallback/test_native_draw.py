"""The plain chain of samplers in one native call: the tokens of a plain Python reading of it, in any company."""

from __future__ import annotations

import random

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
        }
        requests.append(request_of(tokens, **params))
    return requests


def batch_of(requests: list[Request]) -> DrawBatch:
    windows, starts, rows = [], [0], []
    for request in requests:
        p = request.params
        last_n = len(request.token_ids) if p.repeat_last_n < 0 else p.repeat_last_n
        windows += request.token_ids[max(0, len(request.token_ids) - last_n) :]
        starts.append(len(windows))
        number = reference_uniform(p.seed, request.total, request.choice_index)
        penalties = (p.repeat_penalty, p.presence_penalty, p.frequency_penalty)
        rows.append((p.temperature, p.top_k, p.top_p, p.min_p, *penalties, number))
    return DrawBatch(
        torch.tensor(windows, dtype=torch.int64),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 8),
    )


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


def test_no_rows_are_no_tokens_and_foreign_indices_are_refused() -> None:
    wing = open_wing("portable")
    table, x = inputs(wing)
    assert wing.head_draw(x[:0], GAIN, 1e-5, table, batch_of([])).tolist() == []
    one = batch_of([request_of([5, 6])])
    with pytest.raises(ValueError, match=f"window token {VOCAB}"):
        wing.head_draw(x[:1], GAIN, 1e-5, table, DrawBatch(torch.tensor([VOCAB, 1]), one.starts, one.parameters))
    for starts in ([0, 1], [1, 2], [0, 3]):
        cut = DrawBatch(one.windows, torch.tensor(starts, dtype=torch.int32), one.parameters)
        with pytest.raises(ValueError, match="starts do not cut the windows"):
            wing.head_draw(x[:1], GAIN, 1e-5, table, cut)
    with pytest.raises(ValueError, match=r"parameters must be .*\[1, 8\]"):
        wing.head_draw(x[:1], GAIN, 1e-5, table, DrawBatch(one.windows, one.starts, one.parameters[:, :7]))
