"""The fields of samplers and of what ends an output: types, ranges, defaults, and what is said to be effective."""

from __future__ import annotations

from typing import Any

import pytest

from service.engine.request import SAMPLERS
from tests.service.api.asgi import CHAT, Client, error_of
from tests.service.engine.fakes import END, EOS, endless

DEFAULTS: dict[str, Any] = {
    "samplers": list(SAMPLERS),
    "min_keep": 0,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 128,
    "dry_sequence_breakers": ["\n", ":", '"', "*"],
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "ignore_eos": False,
    "min_tokens": 0,
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
}
FLOATS = {
    "dynatemp_range": (0, 2),
    "dynatemp_exponent": (0, 10),
    "top_n_sigma": (-1, 100),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 10),
}
INTEGERS: dict[str, tuple[int, int | None]] = {
    "min_keep": (0, None),
    "dry_allowed_length": (0, None),
    "dry_penalty_last_n": (-1, 128),
    "mirostat": (0, 2),
    "min_tokens": (0, 128),
}
FLAGS = ["ignore_eos", "include_stop_str_in_output"]
NOT_NUMBERS: list[Any] = [True, "1", [], {}]
WRONG: list[tuple[str, Any]] = [
    *((name, value) for name in [*FLOATS, *INTEGERS] for value in NOT_NUMBERS),
    *((name, value) for name in INTEGERS for value in [1.5, 1.0]),
    *((name, value) for name in FLAGS for value in [0, 1, "true", []]),
    *((name, low - 0.001) for name, (low, _) in FLOATS.items()),
    *((name, high + 0.001) for name, (_, high) in FLOATS.items()),
    *((name, low - 1) for name, (low, _) in INTEGERS.items()),
    *((name, high + 1) for name, (_, high) in INTEGERS.items() if high is not None),
    *((name, 10**30) for name, (_, high) in INTEGERS.items() if high is not None),
    *(("samplers", value) for value in [0, {}, True, [1], [None], [["top_k"]], ["top-k"], ["infill"], "z", "edskyz"]),
    *(("samplers", value) for value in [["top_k"] * 33, "k" * 33, ["logit_bias"], ["top_k", {}]]),
    *(("dry_sequence_breakers", value) for value in ["a", 0, {}, [1], [["a"]], [""], ["a" * 41], ["a"] * 17]),
    *(("stop_token_ids", value) for value in [5, "5", {}, ["5"], [1.0], [True], [-1], [261], [10**30], [1] * 65]),
]


@pytest.mark.parametrize("path", ["/chat/completions", "/completion", "/v1/completions"])
@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda item: str(item)[:24])
def test_a_wrong_type_or_range_is_refused_by_the_name_of_the_field(
    client: Client, path: str, name: str, value: Any
) -> None:
    body = CHAT if "chat" in path else {"prompt": "abc"}
    error = error_of(client.post(path, {**body, name: value}), 400, "invalid_parameter")
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ({"xtc_probability": 1.5}, ["xtc_probability", "1.5", "less than or equal to 1"]),
        ({"samplers": ["top_q"]}, ["samplers", "top_q", "top_n_sigma"]),
        ({"samplers": "kz"}, ["samplers", "'z'", "edskypmxt"]),
        ({"samplers": ["top_k"] * 40}, ["samplers", "32", "40"]),
        ({"dry_penalty_last_n": 129}, ["dry_penalty_last_n", "129", "128", "n_ctx"]),
        ({"dry_sequence_breakers": ["x" * 50]}, ["dry_sequence_breakers[0]", "40"]),
        ({"stop_token_ids": [4, 300]}, ["stop_token_ids", "300", "260"]),
        ({"min_tokens": 9, "max_tokens": 8}, ["min_tokens", "9", "8", "max_tokens"]),
        ({"min_tokens": 200}, ["min_tokens", "200", "128", "n_ctx"]),
    ],
)
def test_the_message_names_the_field_the_value_and_the_limit(
    client: Client, field: dict[str, Any], parts: list[str]
) -> None:
    error = error_of(client.post("/completion", {"prompt": "a", **field}), 400, "invalid_parameter")
    assert [part for part in parts if part not in error["message"]] == []


def effective(client: Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/completion", {"prompt": "a", **fields})
    assert response.status_code == 200, response.text
    return dict(response.json()["generation_settings"])


def test_a_silent_request_gets_the_defaults_and_null_is_silence(client: Client) -> None:
    assert effective(client).items() >= DEFAULTS.items()
    assert effective(client, **dict.fromkeys(DEFAULTS)).items() >= DEFAULTS.items()


def test_what_is_asked_for_is_effective_on_every_route(client: Client) -> None:
    asked: dict[str, Any] = {
        **{name: high for name, (_, high) in FLOATS.items()},
        "samplers": ["top_k", "temperature", "xtc", "xtc"],
        "min_keep": 3,
        "dry_allowed_length": 7,
        "dry_penalty_last_n": 20,
        "dry_sequence_breakers": ["é" * 40, "\n"],
        "mirostat": 2,
        "ignore_eos": True,
        "min_tokens": 2,
        "stop_token_ids": [7, 8],
        "include_stop_str_in_output": True,
    }
    for path, body in [
        ("/chat/completions", CHAT),
        ("/completion", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a"}),
    ]:
        answer = client.post(path, {**body, **asked}).json()
        assert answer["generation_settings"].items() >= asked.items()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("edskypmxt", list(SAMPLERS)),
        ("kt", ["top_k", "temperature"]),
        ("", []),
        ([], []),
        (["typical_p", "typ_p"], ["typ_p", "typ_p"]),
    ],
)
def test_an_order_is_given_as_names_or_letters(client: Client, given: Any, expected: list[str]) -> None:
    assert effective(client, samplers=given)["samplers"] == expected


def test_numbers_without_an_upper_limit_are_given_as_what_they_mean(client: Client) -> None:
    assert effective(client, min_keep=10**30)["min_keep"] == 261
    assert effective(client, dry_allowed_length=10**30)["dry_allowed_length"] == 128
    assert effective(client, dry_penalty_last_n=-1, n_ctx=50)["dry_penalty_last_n"] == 50
    assert effective(client, stop_token_ids=[9, 5, 9])["stop_token_ids"] == [9, 5]


def test_ignore_eos_shows_as_biases_that_forbid(client: Client) -> None:
    settings = effective(client, ignore_eos=True, logit_bias={str(EOS): 5, "7": 1})
    assert settings["logit_bias"] == [
        {"token": 7, "bias": 1.0},
        {"token": EOS, "bias": None},
        {"token": END, "bias": None},
    ]


def test_what_together_forbids_every_token_is_refused(client: Client) -> None:
    biases = [[token_id, False] for token_id in range(255)]
    stops = [255, 256, 258, 259]
    body = {"prompt": "a", "logit_bias": biases, "stop_token_ids": stops}
    assert client.post("/completion", body).status_code == 200
    assert client.post("/completion", {**body, "ignore_eos": True}).status_code == 200
    error_of(client.post("/completion", {**body, "min_tokens": 1}), 400, "invalid_parameter")


def test_tfs_z_is_refused_unless_it_is_off(client: Client) -> None:
    assert client.post("/completion", {"prompt": "a", "tfs_z": 1}).status_code == 200
    error_of(client.post("/completion", {"prompt": "a", "tfs_z": 0.9}), 400, "not_supported")


def test_a_stop_token_ends_the_output_and_has_no_text_unless_asked_for(client: Client) -> None:
    body = {"prompt": "hello", "stop_token_ids": [ord("l")]}
    without = client.post("/completion", body).json()
    assert (without["content"], without["stop_type"], without["tokens_predicted"]) == ("he", "eos", 3)
    within = client.post("/completion", {**body, "include_stop_str_in_output": True}).json()
    assert (within["content"], within["stop_type"], within["tokens_predicted"]) == ("hel", "eos", 3)
    choice = client.post("/v1/completions", body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("he", "stop")


def test_a_stop_string_is_part_of_the_output_where_asked_for(client: Client) -> None:
    body = {"prompt": "hello there", "stop": ["lo t"], "include_stop_str_in_output": True}
    whole = client.post("/completion", body).json()
    assert (whole["content"], whole["stop_type"], whole["stopping_word"]) == ("hello t", "word", "lo t")
    _, events = client.stream("/completion", body)
    assert "".join(event["content"] for event in events) == "hello t"


def test_the_first_min_tokens_end_nothing(client: Client) -> None:
    body = {"prompt": "abcabc", "stop": ["c"]}
    assert client.post("/completion", body).json()["content"] == "ab"
    assert client.post("/completion", {**body, "min_tokens": 2}).json()["content"] == "ab"
    assert client.post("/completion", {**body, "min_tokens": 3}).json()["content"] == "abcab"


def test_min_tokens_may_be_all_that_max_tokens_allows() -> None:
    with Client(choose=endless) as client:
        answer = client.post("/completion", {"prompt": "a", "min_tokens": 9, "max_tokens": 9}).json()
        assert (answer["tokens_predicted"], answer["stop_type"]) == (9, "limit")


def test_the_document_tells_types_and_ranges(client: Client) -> None:
    fields = client.get("/openapi.json").json()["components"]["schemas"]["CompletionBody"]["properties"]
    assert fields.keys() >= DEFAULTS.keys()
    for name, (low, high) in FLOATS.items():
        schema = next(item for item in fields[name]["anyOf"] if item["type"] == "number")
        assert (schema["minimum"], schema["maximum"]) == (low, high)
    order, letters = fields["samplers"]["anyOf"][:2]
    assert set(SAMPLERS) <= set(order["items"]["enum"])
    assert letters["pattern"] == "^[edskypmxt]*$"
    assert all(fields[name]["description"] for name in DEFAULTS)
