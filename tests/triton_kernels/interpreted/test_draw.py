"""Tokens drawn by kernels against the samplers written out in plain Python, and rounds against steps and draws."""

from __future__ import annotations

import math
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet_model.batch import DecodeBatch, DrawBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model, Shortcuts
from service.engine.proof import Trial, prove
from service.engine.request import Limits, Request, SamplingParams
from service.engine.runner import ModelRunner
from service.engine.sampler import draw_batch
from tests.bitnet_model.traffic import BLOCK_TOKENS, Row, Traffic
from tests.service.engine.sampling_reference import reference_token, request_of
from tests.service.engine.test_exactness import GREEDY, PLAIN, SEEDED, Setup, engine_of
from tests.triton_kernels.fake_capture import FakeCapture
from tools.make_checkpoint import write_checkpoint
from triton_kernels import ranking, rounds, wing
from triton_kernels.device import Device, open_device
from triton_kernels.draw import Draws, choose, edit
from triton_kernels.rounds import Room
from triton_kernels.step import MixedRun
from triton_kernels.wing import TritonWing

CPU = open_device(torch.device("cpu"))
VOCAB = 300
BIASES = ((7, 3.0), (11, -math.inf), (12, -2.0), (250, 6.0), (11, 4.0))


def top(logits: Tensor, k: int, extra_ids: Tensor, _device: Device) -> tuple[Tensor, Tensor]:
    """What `ranking.top` gives, which the interpreter takes half a second a row for; it has tests of its own."""
    ids = torch.cat([logits.sort(dim=1, descending=True, stable=True).indices[:, :k], extra_ids], dim=1)
    return ids, logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)


@pytest.fixture(autouse=True)
def _sorted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_kernels.ranking.top", top)


def tokens(logits: Tensor, batch: DrawBatch, room: Room | None = None) -> list[int]:
    room = room or rounds.room_for(batch)
    num_rows = logits.shape[0]
    held = rounds.Staging(rounds.draw_parts(num_rows, room), torch.device("cpu"))
    draws, drawn = Draws(*held.tensors), torch.zeros(room.rounds, num_rows, dtype=torch.int64)
    rounds.fill_draws(draws, batch)
    edited = logits.clone()
    edit(edited, draws, drawn, CPU)
    ids, best = ranking.top(edited, room.candidates, torch.empty(num_rows, 0, dtype=torch.int64), CPU)
    choose(ids, best, draws, drawn, CPU)
    return drawn[0].tolist()


def requests(rng: np.random.Generator, count: int) -> list[Request]:
    def one_of(*values: float) -> float:
        return float(rng.choice(values))

    return [
        request_of(
            rng.integers(0, VOCAB, rng.integers(1, 150)).tolist(),
            seed=int(rng.integers(1 << 30)),
            temperature=one_of(0.0, 0.3, 1.0, 1.7),
            top_k=int(one_of(1, 5, 40, 64, 65, 150, 1000)),
            top_p=one_of(1.0, 0.95, 0.3, 0.0),
            min_p=one_of(0.0, 0.05, 1.0),
            repeat_penalty=one_of(1.0, 1.3),
            presence_penalty=one_of(0.0, 0.5),
            frequency_penalty=one_of(0.0, 0.3, -0.2),
            repeat_last_n=int(one_of(0, 3, 64, -1)),
            logit_bias=BIASES if rng.random() < 0.4 else (),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("spread", ["flat", "wide", "tied"])
def test_tokens_are_those_of_the_samplers_in_plain_python(spread: str) -> None:
    rng = np.random.default_rng(len(spread))
    table: NDArray[np.float32] = (rng.standard_normal((16, VOCAB)) * (5 if spread == "wide" else 1)).astype(np.float32)
    if spread == "tied":
        table = np.round(table)
    rows = requests(rng, 16)
    wanted = [reference_token(line, request) for line, request in zip(table, rows, strict=True)]
    assert tokens(torch.from_numpy(table), draw_batch(rows)) == wanted


def test_a_row_draws_the_same_token_whatever_room_its_company_needs() -> None:
    rng = np.random.default_rng(2)
    rows = [request for request in requests(rng, 40) if request.params.top_k <= 64][:6]
    logits = torch.from_numpy(rng.standard_normal((len(rows), VOCAB)).astype(np.float32))
    together = tokens(logits, draw_batch(rows), Room(256, 512, 64, 16))
    alone = [tokens(logits[i : i + 1], draw_batch([row]))[0] for i, row in enumerate(rows)]
    assert together == alone


def test_rows_without_a_token_say_why() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[0, 5], logits[1, 9], logits[2] = torch.nan, torch.inf, -torch.inf
    banned = tuple((token_id, -math.inf) for token_id in range(VOCAB))
    rows = [request_of([1], temperature=1.0, seed=3, logit_bias=banned if i == 3 else ()) for i in range(4)]
    assert tokens(logits, draw_batch(rows)) == [-1, -1, -1, -2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"layers": 1, "hidden": 64, "inter": 96, "heads": 2, "kv_heads": 1}
    return write_checkpoint(tmp_path_factory.mktemp("packed"), "packed", "tiny", **shape)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder, TritonWing(CPU, "a test", FakeCapture), head_dtype="bf16")


PROMPTS = [[5, 9, 300, 7], [17, 3], [(7 * i) % 400 for i in range(30)]]
"""The last one needs another block in the course of three rounds."""


def prefilled(model: Model, prompts: list[list[int]]) -> tuple[Traffic, list[Row], DecodeBatch]:
    """Rows whose last token is not computed yet, with blocks for what comes."""
    traffic = Traffic(model, "bf16", num_blocks=8)
    rows = [traffic.admit([*prompt, *[0] * 8]) for prompt in prompts]
    traffic.step([(row, len(prompt) - 1) for row, prompt in zip(rows, prompts, strict=True)])
    width = max(len(row.block_ids) for row in rows)
    batch = DecodeBatch(
        token_ids=torch.tensor([prompt[-1] for prompt in prompts]),
        lengths=torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32),
        block_tables=torch.tensor([(row.block_ids + [0] * width)[:width] for row in rows], dtype=torch.int32),
    )
    return traffic, rows, batch


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_are_steps_and_draws_one_after_the_other(model: Model, temperature: float) -> None:
    assert model.decode is not None
    assert model.draw is not None
    params = {"temperature": temperature, "top_k": 40, "repeat_penalty": 1.4, "presence_penalty": 0.4}

    def rows(drawn: list[list[int]]) -> list[Request]:
        return [request_of([*p, *more], seed=9, **params) for p, more in zip(PROMPTS, drawn, strict=True)]

    traffic, _, batch = prefilled(model, PROMPTS)
    at_once = model.decode(batch, draw_batch(rows([[], [], []]), 3), traffic.cache).T.tolist()

    traffic, _, batch = prefilled(model, PROMPTS)
    drawn: list[list[int]] = [[], [], []]
    for turn in range(3):
        step = DecodeBatch(
            torch.tensor([([*p, *more])[-1] for p, more in zip(PROMPTS, drawn, strict=True)]),
            batch.lengths + turn,
            batch.block_tables,
        )
        for more, token_id in zip(
            drawn, model.decode(step, draw_batch(rows(drawn)), traffic.cache)[0].tolist(), strict=True
        ):
            more.append(token_id)
    assert at_once == drawn
    assert len({tuple(row) for row in at_once}) == 3
    assert batch.block_tables.shape[1] == 2


def test_draws_of_hidden_states_are_those_of_rounds(model: Model) -> None:
    assert model.decode is not None
    assert model.draw is not None
    requested = [request_of(prompt, seed=4, temperature=0.8, top_k=20) for prompt in PROMPTS]
    traffic, _, batch = prefilled(model, PROMPTS)
    (first,) = model.decode(batch, draw_batch(requested), traffic.cache).tolist()
    traffic, rows, _ = prefilled(model, PROMPTS)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        row.token_ids[row.computed] = prompt[-1]
    traffic.step([(row, 1) for row in rows])
    hidden = torch.cat([row.hidden[-1] for row in rows])
    assert model.draw(hidden, draw_batch(requested)).tolist() == first


def test_a_row_that_goes_bad_stays_so_and_leaves_the_others_alone(model: Model) -> None:
    assert model.decode is not None
    good = [request_of(prompt, temperature=0.0) for prompt in PROMPTS]
    traffic, _, batch = prefilled(model, PROMPTS)
    wanted = model.decode(batch, draw_batch(good, 2), traffic.cache)
    banned = tuple((token_id, -math.inf) for token_id in range(model.config.vocab_size))
    bad = [good[0], request_of(PROMPTS[1], temperature=0.0, logit_bias=banned), good[2]]
    traffic, _, batch = prefilled(model, PROMPTS)
    got = model.decode(batch, draw_batch(bad, 2), traffic.cache)
    assert got[:, 1].tolist() == [-2, -2]
    assert got[:, [0, 2]].tolist() == wanted[:, [0, 2]].tolist()


def test_more_rows_than_a_capture_holds_are_drawn_in_parts() -> None:
    rng = np.random.default_rng(3)
    rows = requests(rng, 7)
    batch = draw_batch(rows)
    logits = torch.from_numpy(rng.standard_normal((7, VOCAB)).astype(np.float32))
    parts = [tokens(logits[first : first + 3], part) for first, part in rounds.pieces(batch, 3)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert list(chain.from_iterable(parts)) == tokens(logits, batch)


def test_an_engine_says_the_same_with_tokens_drawn_on_the_device_and_on_the_host(folder: Path, model: Model) -> None:
    """Requests that come and go at different times, prompts beside decode, one request that only the host can draw."""
    plain = load_model(folder, TritonWing(CPU, "a test"), head_dtype="bf16")
    assert plain.draw is None
    assert plain.decode is None
    wishes: list[dict[str, Any]] = [GREEDY, PLAIN, SEEDED]
    answers = []
    for one, max_rounds in ((plain, 1), (model, 1), (model, 4)):
        setup = Setup(one.ops, one, "bf16")
        engine = engine_of(setup, num_blocks=24, max_rounds=max_rounds)
        waiting = [
            Request(
                str(number),
                tuple(range(9 * number + 3)),
                SamplingParams(seed=number, **params),
                Limits(n_ctx=128, n_batch=512, max_tokens=5),
            )
            for number, params in enumerate(wishes)
        ]
        said: dict[str, list[int]] = {request.id: [] for request in waiting}
        while waiting or engine.has_work:
            if waiting:
                engine.add(waiting.pop(0))
            for request_id, delta in engine.step():
                said[request_id] += delta.token_ids
        answers.append(said)
    assert answers[0] == answers[1] == answers[2]
    assert {len(tokens) for tokens in answers[0].values()} == {5}


def test_recorded_work_that_goes_wrong_is_found_before_it_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts go kernel by kernel where their recorded steps are wrong, and tokens are drawn by the host likewise."""
    model = load_model(folder, TritonWing(CPU, "a test", FakeCapture), head_dtype="bf16")
    runner = ModelRunner(model, model.ops, num_blocks=2, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")
    trial = Trial(model.config.vocab_size, 12, 2, BLOCK_TOKENS, 1)
    offered = model.shortcuts
    mixed, put = MixedRun.__call__, wing.choose

    def put_wrongly(ids: Tensor, best: Tensor, draws: Draws, drawn: Tensor, device: Device) -> None:
        put(ids, best, draws, drawn, device)
        drawn.clamp_(max=100)

    with monkeypatch.context() as broken:
        broken.setattr(MixedRun, "__call__", lambda self, inputs: mixed(self, inputs).flip(-1))
        broken.setattr(wing, "choose", put_wrongly)
        assert [doubt.shortcut for doubt in prove(model, partial(trial.run, runner))] == ["step", "draw", "decode"]
    assert model.shortcuts == Shortcuts(step=offered.step)
    done: list[tuple[int, int]] = []
    runner.warm_up(1, BLOCK_TOKENS, 16, lambda *progress: done.append(progress))
    assert done[-1] == (4, 4)  # a step of one row, one of 16 tokens, two heads; no draws


def test_a_capture_with_more_room_serves_what_needs_less(folder: Path) -> None:
    capture = FakeCapture()
    one = load_model(folder, TritonWing(CPU, "a test", lambda: capture), head_dtype="bf16")
    assert one.decode is not None
    batch = draw_batch([request_of(prompt, temperature=0.0) for prompt in PROMPTS])
    traffic, _, rows = prefilled(one, PROMPTS)
    wide = torch.nn.functional.pad(rows.block_tables, (0, 30))
    first = one.decode(DecodeBatch(rows.token_ids, rows.lengths, wide), batch, traffic.cache)
    before = capture.num_captures
    assert torch.equal(one.decode(rows, batch, traffic.cache), first)
    assert capture.num_captures == before
    assert Room(64, 128, 16, 8).holds(Room(64, 64, 16, 8))
    assert not Room(64, 64, 16, 8).holds(Room(1, 64, 16, 8))
    assert not Room(64, 64, 16, 8).holds(Room(64, 128, 16, 8))
