"""Every sampler and every control of single tokens over a real server and a real (random, tiny) model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.live import Live
from tests.service.api.asgi import events_of

PROMPT = "Once upon a time there was a small model, once upon a time there was a"
DRY = {"dry_multiplier": 3.0, "dry_allowed_length": 1, "repeat_penalty": 1}
CHAINS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0, **DRY},
    {"temperature": 1.2, **DRY, "dry_sequence_breakers": []},
    {"temperature": 1.2, **DRY, "dry_sequence_breakers": ["t", "e t"], "top_k": 0},
    {"temperature": 1.2, "mirostat": 1, "mirostat_tau": 3, "mirostat_eta": 0.3},
    {"temperature": 1.2, "mirostat": 2, "mirostat_tau": 3, "mirostat_eta": 0.3, **DRY},
    {"temperature": 1.5, "xtc_probability": 0.7, "xtc_threshold": 0.01},
    {"temperature": 1.5, "top_n_sigma": 1.5, "min_keep": 4},
    {"temperature": 1, "dynatemp_range": 0.9, "dynatemp_exponent": 0.5},
    {"temperature": 1.8, "samplers": ["temperature", "top_p", "penalties", "top_k"]},
    {"temperature": 1.8, "samplers": "xkt", "xtc_probability": 1, "xtc_threshold": 0.01},
    {"temperature": 1.8, "samplers": []},
    {"temperature": 1.8, "ignore_eos": True, "top_k": 0, "top_p": 1},
    {"temperature": 1.8, "min_tokens": 9, "stop": ["e", "a"], "stop_token_ids": list(range(100, 160))},
    {"temperature": 1.8, "stop": ["e", "t"], "include_stop_str_in_output": True},
]


def text_of(live: Live, i: int) -> tuple[str, dict[str, Any]]:
    body = {"prompt": PROMPT, "seed": 100 + i, "max_tokens": 40, "stream": True, **CHAINS[i]}
    response = live.http.post(live.url + "/completion", json=body)
    assert response.status_code == 200, response.text
    events = events_of(response.text)
    last = {
        name: events[-1][name] for name in ("stop_type", "stopping_word", "tokens_predicted", "generation_settings")
    }
    return "".join(event["content"] for event in events), last


def test_all_of_them_in_one_batch_get_what_each_gets_alone(model: Live) -> None:
    alone = [text_of(model, i) for i in range(len(CHAINS))]
    model.at_rest()
    with ThreadPoolExecutor(len(CHAINS)) as pool:
        together = list(pool.map(lambda i: text_of(model, i), range(len(CHAINS))))
    assert together == alone
    assert len({text for text, _ in alone}) == len(CHAINS)
    model.at_rest()


def test_dry_changes_what_is_said(model: Live) -> None:
    assert text_of(model, 1)[0] != text_of(model, 2)[0]


def answer(model: Live, **fields: Any) -> dict[str, Any]:
    response = model.post("/completion", {"prompt": "hi", "n_predict": 12, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_model_that_wants_to_end_goes_on_with_ignore_eos(model: Live) -> None:
    wish = {str(token_id): 100 for token_id in model.engine.info.eos_ids}
    ended = answer(model, logit_bias=wish)
    assert (ended["stop_type"], ended["tokens_predicted"]) == ("eos", 1)
    went_on = answer(model, logit_bias=wish, ignore_eos=True)
    assert (went_on["stop_type"], went_on["tokens_predicted"]) == ("limit", 12)


def test_a_model_that_wants_to_end_goes_on_until_min_tokens(model: Live) -> None:
    wish = {str(token_id): 100 for token_id in model.engine.info.eos_ids}
    ended = answer(model, logit_bias=wish, min_tokens=5)
    assert (ended["stop_type"], ended["tokens_predicted"]) == ("eos", 6)


def test_a_stop_token_ends_the_answer_and_min_tokens_puts_it_off(model: Live) -> None:
    stop = {"logit_bias": {"300": 100}, "stop_token_ids": [300], "repeat_penalty": 1}
    assert answer(model, **stop)["tokens_predicted"] == 1
    assert answer(model, **stop, min_tokens=4)["tokens_predicted"] == 5


EXTREMES: list[dict[str, Any]] = [
    {"samplers": ["xtc"] * 32, "xtc_probability": 1, "xtc_threshold": 0},
    {"samplers": ["dry", "penalties"] * 16, "dry_multiplier": 100, "dry_base": 100, "dry_allowed_length": 0},
    {"samplers": ["penalties"] * 32, "repeat_penalty": 1e300, "temperature": 2},
    {"min_keep": 10**30, "top_k": 1},
    {"dynatemp_range": 2, "dynatemp_exponent": 10, "temperature": 1e-300},
    {"top_n_sigma": 100, "temperature": 2},
    {"top_n_sigma": 1e-300},
    {"mirostat": 1, "mirostat_tau": 100, "mirostat_eta": 10},
    {"mirostat": 1, "mirostat_tau": 0, "mirostat_eta": 0},
    {"mirostat": 2, "mirostat_tau": 100, "mirostat_eta": 10},
    {"mirostat": 2, "mirostat_tau": 0, "mirostat_eta": 10},
    {"dry_multiplier": 100, "dry_sequence_breakers": ["é" * 40] * 16, "dry_penalty_last_n": 0},
    {"stop_token_ids": list(range(64)), "min_tokens": 6},
]


@pytest.mark.parametrize("fields", EXTREMES, ids=lambda fields: str(fields)[:40])
def test_every_field_at_its_extremes_gives_an_answer(model: Live, fields: dict[str, Any]) -> None:
    assert answer(model, **{"n_predict": 6, "temperature": 1, **fields})["tokens_predicted"] > 0
    model.at_rest()
