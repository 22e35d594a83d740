"""What a request that asks for nothing gets, and in which order the samplers act, from running servers."""

from __future__ import annotations

from typing import Any

import pytest

from service.config import Settings
from tests.server.asking import LEAST, STORY, ask, content_of, native
from tests.server.live import Live

# The two tables of the API reference, and what it leaves open.
CONTRACT = {
    "temperature": 0.8,
    "max_tokens": -1,
    "n_predict": -1,
    "top_k": 40,
    "top_p": 0.95,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "n_ctx": 2048,
    "n_batch": 512,
    "stop": [],
    "min_p": 0,
    "typical_p": 1,
}
# As in the order of llama.cpp's server, in which one that does nothing has its place too.
ORDER = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
OFF = {
    "min_keep": 0,
    "dynatemp_range": 0,
    "top_n_sigma": -1,
    "xtc_probability": 0,
    "dry_multiplier": 0,
    "mirostat": 0,
    "min_tokens": 0,
    "ignore_eos": False,
    "n_probs": 0,
    "logit_bias": [],
    "stop_token_ids": [],
}
GENERATIONS = [path for path in LEAST if path not in ("/v1/responses", "/v1/messages")]


@pytest.mark.parametrize("path", GENERATIONS)
def test_a_silent_request_gets_the_defaults_of_the_contract(demo: Live, path: str) -> None:
    settings = ask(demo, path, regex="a")["generation_settings"]
    assert {name: settings[name] for name in CONTRACT} == CONTRACT
    assert settings["samplers"] == ORDER
    assert {name: settings[name] for name in OFF} == OFF
    assert settings["n_threads"] == demo.engine.info.n_threads
    assert settings["cache_prompt"] is True


def test_the_props_tell_the_same_defaults(demo: Live) -> None:
    props = demo.http.get(demo.url + "/props").json()["default_generation_settings"]
    assert props["n_ctx"] == 2048
    assert {name: props["params"][name] for name in CONTRACT} == CONTRACT
    assert props["params"]["seed"] == -1


@pytest.mark.parametrize("path", LEAST)
def test_saying_every_default_aloud_changes_nothing(demo: Live, path: str) -> None:
    said = {name: value for name, value in CONTRACT.items() if name not in ("max_tokens", "n_predict", "stop")}
    beside: dict[str, Any] = {"seed": 11, "n_predict": 24, "cache_prompt": False}
    assert content_of(ask(demo, path, **beside)) == content_of(ask(demo, path, **beside, **said))


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.4), ("top_k", 3), ("top_p", 0.5), ("repeat_penalty", 1)])
def test_each_default_is_at_work(model: Live, name: str, value: float) -> None:
    """Told otherwise, the same seed takes other tokens."""
    silent: dict[str, Any] = {"prompt": STORY, "seed": 5, "n_predict": 40, "return_tokens": True}
    default = model.post("/completion", silent).json()["tokens"]
    assert model.post("/completion", {**silent, name: value}).json()["tokens"] != default


def test_the_drawn_seed_is_told_and_gives_the_answer_again(demo: Live) -> None:
    first = ask(demo, "/completion", n_predict=24)
    seeds = {ask(demo, "/completion", n_predict=1)["generation_settings"]["seed"] for _ in range(4)}
    assert len(seeds) == 4
    again = ask(demo, "/completion", n_predict=24, seed=first["generation_settings"]["seed"])
    assert again["content"] == first["content"]


def test_an_operator_may_set_other_defaults(model: Live) -> None:
    settings = {"default_temperature": 0.0, "default_max_tokens": 7, "default_repeat_last_n": 5, "default_seed": 3}
    with Live(settings) as live:
        told = ask(live, "/completion", prompt="a long prompt")
        effective = told["generation_settings"]
        assert (effective["temperature"], effective["max_tokens"]) == (0, 7)
        assert (effective["repeat_last_n"], effective["seed"]) == (5, 3)
        assert (told["content"], told["stop_type"]) == ("a long ", "limit")


def leading(model: Live, prompt: list[int], lead: float, place: float = 50.0) -> list[list[Any]]:
    """Biases with which token 77 comes first after this prompt, at about the logit `place`, 78 follows it by `lead`,
    and nothing else may come."""

    def logprob(token_id: int) -> float:
        body = {"prompt": [*prompt, token_id], "max_tokens": 0, "echo": True, "logprobs": 0}
        return float(ask(model, "/v1/completions", **body)["choices"][0]["logprobs"]["token_logprobs"][-1])

    others = set(range(model.engine.info.vocab_size)) - {77, 78}
    forbidden = [[token_id, False] for token_id in others]
    return [[77, place - logprob(77)], [78, place - lead - logprob(78)], *forbidden]


@pytest.mark.parametrize("place", [50.0, -50.0])  # a logit above 0 is divided, one below it multiplied
def test_penalties_look_back_over_the_prompt_as_far_as_repeat_last_n(model: Live, place: float) -> None:
    prompt = [70, 71, 72, 77, 80, 81, 82, 83]
    bias = leading(model, prompt, 1.0, place)

    def first(**fields: Any) -> int:
        return int(native(model, prompt=prompt, n_predict=1, logit_bias=bias, **fields)["tokens"][0])

    assert first() == 77
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repeat_penalty": 1.5}):
        assert first(**penalty) == 78
        assert first(**penalty, repeat_last_n=5) == 78
        assert first(**penalty, repeat_last_n=-1) == 78
        assert first(**penalty, repeat_last_n=4) == 77
        assert first(**penalty, repeat_last_n=0) == 77


def test_frequency_counts_and_presence_does_not(model: Live) -> None:
    prompt = [77] * 10
    bias = leading(model, prompt, 5.0)

    def first(**fields: Any) -> int:
        return int(native(model, prompt=prompt, n_predict=1, logit_bias=bias, **fields)["tokens"][0])

    assert first() == 77
    assert first(presence_penalty=1) == 77
    assert first(frequency_penalty=0.4) == 77
    assert first(frequency_penalty=0.6) == 78


def test_samplers_can_be_left_out_and_put_in_another_order(model: Live) -> None:
    def firsts(**fields: Any) -> set[int]:
        body = {"n": 8, "n_predict": 1, "return_tokens": True, "repeat_penalty": 1, **fields}
        answers = [native(model, **body, seed=seed) for seed in range(4)]
        return {answer["tokens"][0] for several in answers for answer in several}

    one = {"top_k": 1, "temperature": 2}
    assert len(firsts(**one)) == 1
    assert len(firsts(**one, samplers=["temperature"])) > 10
    cut = {"min_p": 0.1, "temperature": 2, "top_k": 0, "top_p": 1}
    early, late = firsts(**cut, samplers=["min_p", "temperature"]), firsts(**cut, samplers=["temperature", "min_p"])
    assert len(early) < len(late)
    assert firsts(**cut, samplers="mt") == early
    assert firsts(**cut, samplers="mt", logit_bias={"77": 100}) == {77}  # a bias comes before all of them


def test_the_defaults_of_the_settings_are_those_of_the_contract() -> None:
    fields = Settings.model_fields
    told = {name: fields[f"default_{name}"].default for name in CONTRACT if f"default_{name}" in fields}
    assert told == {name: CONTRACT[name] for name in told}
    assert told.keys() == CONTRACT.keys() - {"n_predict", "n_ctx", "n_batch", "stop"}
