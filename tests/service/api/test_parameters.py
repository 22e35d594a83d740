"""What becomes effective of a request: defaults, precedence, ceilings, and the seed that was drawn."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.api.asgi import Client

CONTRACT = {
    "temperature": 0.8,
    "max_tokens": -1,
    "top_k": 40,
    "top_p": 0.95,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "stop": [],
    "n_ctx": 128,
    "n_batch": 64,
    "n_threads": 2,
}


def effective(client: Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/completion", {"prompt": "a", **fields})
    assert response.status_code == 200, response.text
    return dict(response.json()["generation_settings"])


def test_a_silent_request_gets_the_contracts_defaults(client: Client) -> None:
    settings = effective(client)
    assert {name: settings[name] for name in CONTRACT} == CONTRACT


def test_a_silent_request_gets_the_operators_defaults() -> None:
    defaults = {
        "default_temperature": 0.5,
        "default_top_k": 7,
        "default_top_p": 0.5,
        "default_min_p": 0.25,
        "default_typical_p": 0.75,
        "default_repeat_penalty": 1.5,
        "default_repeat_last_n": -1,
        "default_presence_penalty": 1.0,
        "default_frequency_penalty": -1.0,
        "default_seed": 99,
        "default_max_tokens": 3,
    }
    with Client(defaults) as client:
        settings = effective(client)
        assert {name: settings[name.removeprefix("default_")] for name in defaults} == {
            **defaults,
            "default_repeat_last_n": 128,
        }
        assert (
            effective(client, temperature=0, seed=5, max_tokens=2).items()
            >= {
                "temperature": 0,
                "seed": 5,
                "max_tokens": 2,
            }.items()
        )
        assert effective(client, seed=-1)["seed"] != 99


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 4),
        ({"max_tokens": 3, "max_completion_tokens": 4, "n_predict": 5}, 5),
        ({"max_tokens": 3, "n_predict": 0}, 0),
        ({"max_tokens": 3, "n_predict": -1}, -1),
        ({"max_tokens": 3, "n_predict": None}, 3),
        ({"max_tokens": 10**9}, 128),
    ],
)
def test_n_predict_wins_over_max_completion_tokens_and_that_over_max_tokens(
    client: Client, fields: dict[str, Any], expected: int
) -> None:
    settings = effective(client, **fields)
    assert (settings["max_tokens"], settings["n_predict"]) == (expected, expected)


def test_the_repetition_penalty_has_two_names(client: Client) -> None:
    assert effective(client, repetition_penalty=1.25)["repeat_penalty"] == 1.25
    assert effective(client, repetition_penalty=1.25, repeat_penalty=1.5)["repeat_penalty"] == 1.5


def test_n_batch_and_n_threads_are_clamped_to_the_servers(client: Client) -> None:
    assert effective(client, n_batch=7, n_threads=1).items() >= {"n_batch": 7, "n_threads": 1}.items()
    assert effective(client, n_batch=9999, n_threads=9999).items() >= {"n_batch": 64, "n_threads": 2}.items()


def test_a_request_may_ask_for_more_context_than_the_default(client: Client) -> None:
    assert effective(client, n_ctx=512)["n_ctx"] == 512
    assert effective(client, n_ctx=512, repeat_last_n=-1)["repeat_last_n"] == 512
    assert effective(client, n_ctx=20)["repeat_last_n"] == 20


def test_the_drawn_seed_is_reported_and_can_be_asked_for_again(client: Client) -> None:
    drawn = [effective(client, seed=seed)["seed"] for seed in (-1, -1, None)]
    assert len(set(drawn)) == 3
    assert all(0 <= seed < 2**53 for seed in drawn)
    assert effective(client, seed=drawn[0])["seed"] == drawn[0]
    assert effective(client, seed=2**64 - 1)["seed"] == 2**64 - 1


def test_biases_of_both_forms_are_read_and_add_up(client: Client) -> None:
    assert effective(client, logit_bias={"7": 2, "5": -1.5})["logit_bias"] == [
        {"token": 5, "bias": -1.5},
        {"token": 7, "bias": 2.0},
    ]
    assert effective(client, logit_bias=[[5, 1], [5, 0.5], [6, False]])["logit_bias"] == [
        {"token": 5, "bias": 1.5},
        {"token": 6, "bias": None},
    ]


def test_top_k_is_given_as_what_it_means(client: Client) -> None:
    assert [effective(client, top_k=k)["top_k"] for k in (-5, 0, 3, 10**9)] == [0, 0, 3, 261]


def test_chat_reports_what_became_effective_too(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "seed": 11, "n_threads": 99}
    settings = client.post("/v1/chat/completions", body).json()["generation_settings"]
    assert (settings["seed"], settings["n_threads"]) == (11, 2)
