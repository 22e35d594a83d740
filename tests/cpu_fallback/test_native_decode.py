"""Rounds of decoding in one call: the tokens of as many steps and draws, and of nothing but the request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitnet_model.batch import DecodeBatch, DrawBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from bitnet_model.plan import Cache
from service.engine.request import Request
from tests.cpu_fallback.native_support import every_isa, open_wing
from tests.cpu_fallback.test_native_draw import batch_of as draws_of
from tests.cpu_fallback.test_native_step import BLOCK_TOKENS, batch_of, cache_of, random_ids
from tests.service.engine.sampling_reference import request_of

PROMPTS = {3: [3, 0, 7], 9: [5, 2, 8], 14: [9, 1, 4]}
"""Block ids by the length of the prompt: three rows, of which two come to the end of a block on their way."""
ROUNDS = 7
PARAMS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 50, "repeat_last_n": 4, "repeat_penalty": 1.7, "frequency_penalty": 0.4},
    {"temperature": 0.9, "repeat_last_n": -1, "logit_bias": ((7, 3.0), (8, -float("inf")))},
]


def requests(**changed: object) -> list[Request]:
    return [
        request_of(random_ids(length, length).tolist(), seed=length, **(params | changed))
        for length, params in zip(PROMPTS, PARAMS, strict=True)
    ]


def filled(model: Model, rows: list[Request], dtype: str) -> Cache:
    """A cache with all tokens of the prompts but their last."""
    cache = cache_of(model, dtype)
    ids = [torch.tensor(row.token_ids[:-1]) for row in rows]
    model.forward(batch_of([(own, 0, PROMPTS[len(own) + 1]) for own in ids]), cache)
    return cache


def newest(rows: list[Request]) -> DecodeBatch:
    return DecodeBatch(
        torch.tensor([row.token_ids[-1] for row in rows]),
        torch.tensor([row.total for row in rows], dtype=torch.int32),
        torch.tensor([PROMPTS[len(row.prompt_ids)] for row in rows], dtype=torch.int32),
    )


def one_by_one(model: Model, rows: list[Request], dtype: str) -> list[list[int]]:
    """The tokens of each round, by a step and a draw for each."""
    assert model.draw is not None
    cache, rounds = filled(model, rows, dtype), []
    for _ in range(ROUNDS):
        step = [(torch.tensor(row.token_ids[-1:]), row.total - 1, PROMPTS[len(row.prompt_ids)]) for row in rows]
        drawn = model.draw(model.forward(batch_of(step), cache), draws_of(rows)).tolist()
        for row, token_id in zip(rows, drawn, strict=True):
            row.num_computed = row.total
            row.append(token_id)
        rounds.append(drawn)
    return rounds


def decoded(model: Model, rows: list[Request], dtype: str) -> list[list[int]]:
    assert model.decode is not None
    tokens: list[list[int]] = model.decode(newest(rows), draws_of(rows, ROUNDS), filled(model, rows, dtype)).tolist()
    return tokens


@every_isa
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_rounds_give_the_tokens_of_steps_and_draws(isa: str, threads: int, dtype: str, tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing(isa, threads), head_dtype="int8")
    expected = one_by_one(model, requests(), dtype)
    assert decoded(model, requests(), dtype) == expected
    assert len({token_id for tokens in expected for token_id in tokens}) > ROUNDS


def test_a_row_gets_alone_what_it_gets_in_company(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, open_wing("portable"), head_dtype="int8")
    together = torch.tensor(decoded(model, requests(), "bf16"))
    for place, row in enumerate(requests()):
        assert decoded(model, [row], "bf16") == together[:, place : place + 1].tolist()


def test_a_row_gone_bad_draws_nothing_from_then_on_and_harms_nobody(tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing("portable"), head_dtype="int8")
    rows = requests()
    clean = torch.tensor(decoded(model, rows, "bf16"))
    cache = filled(model, rows, "bf16")
    heads = model.plan.num_heads + 2 * model.plan.num_kv_heads
    qkv, zero = torch.full((1, heads * model.plan.head_dim), torch.nan), torch.zeros(1, dtype=torch.int64)
    model.ops.rope_write_kv(qkv, zero, model.plan.rope, cache, 0, torch.tensor([PROMPTS[9][0] * BLOCK_TOKENS]))
    assert model.decode is not None
    ids = model.decode(newest(rows), draws_of(rows, ROUNDS), cache)
    assert ids[:, 1].tolist() == [-1] * ROUNDS
    assert torch.equal(ids[:, [0, 2]], clean[:, [0, 2]])


def banned(draws: DrawBatch, vocab: int) -> DrawBatch:
    """The same of its first row, whose biases forbid every token."""
    return replace(
        draws,
        bias_ids=torch.arange(vocab),
        biases=torch.full((vocab,), -torch.inf),
        bias_starts=torch.tensor([0, vocab], dtype=torch.int32),
    )


def test_a_row_without_a_token_to_choose_says_so_in_every_round(tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing("portable"), head_dtype="int8")
    rows = requests()[:1]
    assert model.decode is not None
    draws = banned(draws_of(rows, 3), model.config.vocab_size)
    assert model.decode(newest(rows), draws, filled(model, rows, "bf16")).tolist() == [[-2]] * 3


def test_indices_outside_their_tables_are_refused_before_anything_is_written(tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing("portable"), head_dtype="int8")
    cache, rows = cache_of(model), requests()[1:2]
    good, draws = newest(rows), draws_of(rows, ROUNDS)
    assert model.decode is not None

    def int32(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    for name, value, words in (
        ("token_ids", torch.tensor([512]), "token id 512"),
        ("token_ids", torch.tensor([1, 2]), "token_ids must be"),
        ("lengths", int32(0), "block table"),
        ("lengths", int32(3 * BLOCK_TOKENS - ROUNDS + 2), "block table"),
        ("block_tables", int32(5, 12, 8)[None], "block id"),
        ("block_tables", int32(5, -1, 8)[None], "block id"),
    ):
        with pytest.raises(ValueError, match=words):
            model.decode(replace(good, **{name: value}), draws, cache)
    with pytest.raises(ValueError, match="one draw for each row"):
        model.decode(good, draws_of(requests(), ROUNDS), cache)
    with pytest.raises(ValueError, match="at least one round"):
        model.decode(good, replace(draws, randoms=draws.randoms[:0]), cache)
    assert not any(bytes(cache.memory.bytes_view()))


def test_a_head_in_halves_decodes_the_tokens_of_the_whole_one_and_bans_the_same(tiny_packed: Path) -> None:
    found = []
    for head_dtype in ("int8", "int4-rescore"):
        model = load_model(tiny_packed, open_wing("portable", threads=2), head_dtype=head_dtype)
        assert model.decode is not None
        tokens, rows = decoded(model, requests(top_k=8), "bf16"), requests(top_k=8)[:1]  # of 512: few enough to screen
        draws = banned(draws_of(rows, 3), model.config.vocab_size)
        found.append((tokens, model.decode(newest(rows), draws, filled(model, rows, "bf16")).tolist()))
    assert found[0] == found[1]
    assert found[0][1] == [[-2]] * 3
