"""Types and ranges of the fields on a running server: both ends are served, and what is just beyond is refused by name.

A refusal is a 400 that names the field and says what it got. Null is absent, a name that nobody knows is ignored, one
that is known and not served is refused unless its value asks for nothing.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.unserved import NEUTRAL
from tests.server.asking import LEAST, MESSAGES, ask, content_of
from tests.server.live import Live
from tests.service.api.asgi import error_of

COMPLETION, CHAT, OPENAI = "/completion", "/v1/chat/completions", "/v1/completions"
N_CTX = 512  # of the tiny model
VOCABULARY = 512
BIG = 2**64 - 1

# Field: values that are served, values that are refused.
NUMBERS: dict[str, tuple[list[float], list[float]]] = {
    "temperature": ([0, 2, 0.5], [-0.01, 2.01]),
    "top_p": ([0, 1], [-0.01, 1.01]),
    "min_p": ([0, 1], [-0.01, 1.01]),
    "typical_p": ([0, 1], [-0.01, 1.01]),
    "repeat_penalty": ([1e-9, 0.5, 1e9], [0, -1]),
    "repetition_penalty": ([1e-9, 0.5, 1e9], [0, -1]),
    "presence_penalty": ([-2, 2], [-2.01, 2.01]),
    "frequency_penalty": ([-2, 2], [-2.01, 2.01]),
    "dynatemp_range": ([0, 2], [-0.01, 2.01]),
    "dynatemp_exponent": ([0, 10], [-0.01, 10.1]),
    "top_n_sigma": ([-1, 100], [-1.01, 101]),
    "xtc_probability": ([0, 1], [-0.01, 1.01]),
    "xtc_threshold": ([0, 1], [-0.01, 1.01]),
    "dry_multiplier": ([0, 100], [-0.01, 101]),
    "dry_base": ([1, 100], [0.99, 101]),
    "mirostat_tau": ([0, 100], [-0.01, 101]),
    "mirostat_eta": ([0, 10], [-0.01, 10.1]),
}
INTEGERS: dict[str, tuple[list[int], list[int]]] = {
    "top_k": ([-(10**30), -1, 0, 1, 10**30], []),
    "repeat_last_n": ([-1, 0, N_CTX], [-2, N_CTX + 1]),
    "seed": ([-1, 0, BIG], [-2, BIG + 1]),
    "max_tokens": ([0, 1, 10**12], [-2]),
    "max_completion_tokens": ([0, 1, 10**12], [-2]),
    "n_predict": ([0, 1], [-2]),
    "n_ctx": ([100, N_CTX], [0, -1, N_CTX + 1]),
    "n_batch": ([1, 10**12], [0, -1]),
    "n_threads": ([1, 10**12], [0, -1]),
    "min_keep": ([0, 10**12], [-1]),
    "dry_allowed_length": ([0, 10**12], [-1]),
    "dry_penalty_last_n": ([-1, 0, N_CTX], [-2, N_CTX + 1]),
    "mirostat": ([0, 1, 2], [-1, 3]),
    "min_tokens": ([0, 2], [-1, 3]),
    "n": ([1, 8], [0, 9]),
    "n_probs": ([0, 20], [-1, 21]),
}
BOOLEANS = (
    "stream",
    "cache_prompt",
    "timings_per_token",
    "ignore_eos",
    "include_stop_str_in_output",
    "return_tokens",
)
BIASES = [[i % VOCABULARY, 0.5] for i in range(1025)]
LISTS: dict[str, tuple[list[Any], list[Any]]] = {
    "stop": (["", "a" * 256, ["x"] * 16, ["a" * 256], []], ["a" * 257, ["x"] * 17, ["a" * 257], [1], 1, {"a": 1}]),
    "stop_token_ids": ([[], [0, VOCABULARY - 1], list(range(64))], [[-1], [VOCABULARY], [0] * 65, ["1"], [True], 1]),
    "logit_bias": (
        [{}, [], {"5": 100}, {"5": -100}, [[5, False]], [[0, 1.5], [VOCABULARY - 1, -1]], BIASES[:1024]],
        [{str(VOCABULARY): 1}, [[-1, 1]], {"5": 101}, {"5": -101}, BIASES, [["a", 1]], [[5, True]], [[5]], "5"],
    ),
    "samplers": ([[], ["top_k", "temperature"], "kt", ["dry"] * 32], [["none"], "z", ["dry"] * 33, 1, [1]]),
    "dry_sequence_breakers": ([[], ["a" * 40] * 16], [["a"] * 17, ["a" * 41], [""], [1], "a"]),
    "response_fields": ([["content"] * 64, ["no/such"]], [["content"] * 65, ["a" * 257], [1], "content"]),
    "prompt": (["", "a", [5], [5, "a"], ["a", "b"], [[5], "a", [5, "a"]]], [[], [[]], {}, 1, [True], [5.0], [[["a"]]]]),
}
# What only one family has.
PARTS = [{"type": "text", "text": "a"}]
FAMILIES: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    CHAT: {
        "n": ([1, 8], [0, 9]),
        "logprobs": ([False, True], [1, "true"]),
        "top_logprobs": ([0, 20], [-1, 21]),
        "prompt_logprobs": ([0, 20], [-1, 21]),
        "messages": (
            [[{"role": role, "content": PARTS}] for role in ("user", "system", "developer", "assistant")],
            [[], "a", {}, [1], [{}], [{"role": "user"}], [{"role": "nobody", "content": "a"}], [{"content": "a"}]],
        ),
    },
    OPENAI: {
        "n": ([1, 8], [0, 9]),
        "logprobs": ([0, 20, False], [-1, 21, True]),
        "best_of": ([1], [0, 2]),
        "echo": ([True, False], [1, "yes"]),
    },
    "/v1/responses": {
        "max_output_tokens": ([1, 10**12], [0, -1, 1.5, "1", True]),
        "input": (["", "a", [{"role": "user", "content": "a"}]], [[], 1, {}, [{"role": "tool", "content": "a"}]]),
        "instructions": (["", "a"], [1, ["a"]]),
    },
    "/v1/messages": {
        "max_tokens": ([1, 10**12], [0, -1, 1.5, "1", True]),
        "stop_sequences": ([[], ["x"] * 16], [["x"] * 17, ["a" * 257], [1]]),
        "system": (["", "a", PARTS], [1, {}]),
        "messages": (
            [[{"role": "user", "content": PARTS}], [{"role": "assistant", "content": "a"}, *MESSAGES]],
            [[], "a", [1], [{"role": "user"}], [{"role": "system", "content": "a"}]],
        ),
    },
}


def body_of(path: str, name: str, value: Any) -> dict[str, Any]:
    length = {} if name in ("n_ctx", "n_predict") else {"n_predict": 2}
    return {**LEAST[path], **length, **({"logprobs": True} if path == CHAT else {}), name: value}


def served(live: Live, path: str, name: str, values: list[Any]) -> None:
    for value in values:
        response = live.post(path, body_of(path, name, value))
        assert response.status_code == 200, (name, value, response.text)


def refused(live: Live, path: str, name: str, values: list[Any]) -> None:
    for value in values:
        content = json.dumps(body_of(path, name, value))  # which writes NaN, as httpx does not
        response = live.http.post(live.url + path, content=content)
        error = response.json()["error"]
        code = "not_supported" if name == "best_of" else "invalid_parameter"
        assert (response.status_code, error["code"], error["param"]) == (400, code, name), (value, error)
        assert error["type"] == "invalid_request_error"
        assert f"'{name}" in error["message"]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_served_to_the_ends_of_its_range(model: Live, name: str) -> None:
    good, bad = NUMBERS[name]
    served(model, COMPLETION, name, good)
    refused(model, COMPLETION, name, [*bad, True, "1", [1], {}, float("nan"), float("inf"), -float("inf")])


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_served_to_the_ends_of_its_range(model: Live, name: str) -> None:
    good, bad = INTEGERS[name]
    served(model, COMPLETION, name, good)
    refused(model, COMPLETION, name, [*bad, True, False, "1", 1.5, 1.0, [1], {}, float("nan"), float("inf")])


@pytest.mark.parametrize("name", BOOLEANS)
def test_a_boolean_is_nothing_else(model: Live, name: str) -> None:
    served(model, COMPLETION, name, [True, False])
    refused(model, COMPLETION, name, [0, 1, "true", "", [], {}])


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_served_up_to_its_limits(model: Live, name: str) -> None:
    good, bad = LISTS[name]
    served(model, COMPLETION, name, good)
    refused(model, COMPLETION, name, bad)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, fields in FAMILIES.items() for name in fields])
def test_what_only_one_family_has_is_served_to_its_limits(model: Live, path: str, name: str) -> None:
    good, bad = FAMILIES[path][name]
    served(model, path, name, good)
    refused(model, path, name, bad)


@pytest.mark.parametrize("path", LEAST)
def test_null_is_absent_and_what_nobody_knows_is_ignored(model: Live, path: str) -> None:
    plain = {"seed": 1, "n_predict": 8}
    ask(model, path, **plain)  # from here on its prompt is cached
    answer = content_of(ask(model, path, **plain))
    nulls = dict.fromkeys([*NUMBERS, *INTEGERS, *BOOLEANS, *NEUTRAL, "stop", "logit_bias", "grammar", "model"])
    assert content_of(model.post(path, {**nulls, **LEAST[path], **plain}).json()) == answer
    unknown = {"no_such_field": {"a": [1, None]}, "temperatur": 9, "Temperature": 9, "": 0}
    assert content_of(ask(model, path, **plain, **unknown)) == answer


@pytest.mark.parametrize("path", [COMPLETION, CHAT, OPENAI])
def test_what_is_not_served_is_refused_unless_it_asks_for_nothing(model: Live, path: str) -> None:
    fields = model.http.get(model.url + "/openapi.json").json()
    body = fields["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    known = fields["components"]["schemas"][body.rpartition("/")[2]]["properties"]
    for name in NEUTRAL.keys() - known.keys():
        for value in NEUTRAL[name]:
            ask(model, path, n_predict=1, **{name: value})
        error = error_of(model.post(path, {**LEAST[path], name: "something"}), 400, "not_supported")
        assert error["param"] == name
        assert f"'{name}'" in error["message"]


def test_limits_of_a_batch(model: Live) -> None:
    served(model, COMPLETION, "prompt", [["a"] * 128])
    refused(model, COMPLETION, "prompt", [["a"] * 129])
    error = error_of(model.post(COMPLETION, {"prompt": ["a"] * 17, "n": 8}), 400, "invalid_parameter")
    assert error["param"] == "prompt"
    assert "17 x 8" in error["message"]
