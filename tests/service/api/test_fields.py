"""Every field of both tables: its type, its range, its default, its alias; and the names that are not served."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.schemas import ChatBody, CompletionBody, NativeBody
from service.api.unserved import NEUTRAL, NEUTRAL_IN_MESSAGE
from tests.service.api.asgi import CHAT, Client, error_of

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/chat/completions", CHAT),
    ("/completion", {"prompt": "abc"}),
    ("/v1/completions", {"prompt": "abc"}),
]
FLOATS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
PENALTIES = ["repeat_penalty", "repetition_penalty"]
INTEGERS = {
    "top_k": None,
    "seed": (-1, 2**64 - 1),
    "max_tokens": (-1, None),
    "n_predict": (-1, None),
    "max_completion_tokens": (-1, None),
    "repeat_last_n": (-1, 128),
    "n_ctx": (1, 512),
    "n_batch": (1, None),
    "n_threads": (1, None),
}
NOT_NUMBERS: list[Any] = [True, False, "1", "", [], {}, [1]]
WRONG_TYPES: list[tuple[str, Any]] = [
    *((name, value) for name in [*FLOATS, *PENALTIES] for value in NOT_NUMBERS),
    *((name, value) for name in INTEGERS for value in [*NOT_NUMBERS, 1.5, 1.0]),
    *(("stream", value) for value in [0, 1, "true", [], {}]),
    *(("stop", value) for value in [0, True, {}, [1], ["a", None], [["a"]]]),
    *(("logit_bias", value) for value in [0, "a", True, [1], [[1]], [[1, 2, 3]], [[1, "a"]], [[True, 1]], {"1": "a"}]),
    *(("logit_bias", value) for value in [{"1": True}, [[1, True]], [[1.0, 1]], {"-1": 1}, {"1.5": 1}, {"x": 1}]),
    ("logit_bias", {"\N{ARABIC-INDIC DIGIT ONE}": 1}),
    *(("stream_options", value) for value in [0, "a", [], {"include_usage": 1}]),
    *(("model", value) for value in [0, [], {}]),
]
OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((name, low - 0.001) for name, (low, _) in FLOATS.items()),
    *((name, high + 0.001) for name, (_, high) in FLOATS.items()),
    *((name, value) for name in FLOATS for value in [1e300, -1e300, 10**400]),
    *((name, value) for name in PENALTIES for value in [0, 0.0, -1, -1e-9]),
    *((name, limits[0] - 1) for name, limits in INTEGERS.items() if limits),
    *((name, limits[1] + 1) for name, limits in INTEGERS.items() if limits and limits[1]),
    *((name, -(10**30)) for name, limits in INTEGERS.items() if limits),
    ("seed", 10**30),
    ("n_ctx", 10**30),
    ("repeat_last_n", 10**30),
    ("stop", ["a"] * 17),
    ("stop", ["a" * 257]),
    ("stop", "a" * 257),
    ("logit_bias", {"261": 1}),
    ("logit_bias", [[-1, 1]]),
    ("logit_bias", [[10**30, 1]]),
    ("logit_bias", {"1": 100.5}),
    ("logit_bias", [[1, 0]] * 1025),
    ("logit_bias", [[token_id, False] for token_id in range(261)]),
]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[0])
@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=lambda item: str(item)[:20])
def test_a_wrong_type_is_refused_by_the_name_of_the_field(
    client: Client, route: tuple[str, dict[str, Any]], name: str, value: Any
) -> None:
    path, body = route
    error = error_of(client.post(path, {**body, name: value}), 400, "invalid_parameter")
    assert error["param"] == name
    assert name in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[0])
@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=lambda item: str(item)[:20])
def test_a_value_out_of_range_is_refused_by_the_name_of_the_field(
    client: Client, route: tuple[str, dict[str, Any]], name: str, value: Any
) -> None:
    path, body = route
    assert error_of(client.post(path, {**body, name: value}), 400, "invalid_parameter")["param"] == name


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ({"temperature": 2.5}, ["temperature", "2.5", "less than or equal to 2"]),
        ({"n_ctx": 513}, ["n_ctx", "513", "512"]),
        ({"seed": -2}, ["seed", "-2", "greater than or equal to -1"]),
        ({"repeat_last_n": 129}, ["repeat_last_n", "129", "128"]),
        ({"stop": ["a"] * 17}, ["stop", "16"]),
        ({"top_k": "hot"}, ["top_k", '"hot"', "integer"]),
    ],
)
def test_the_message_names_the_field_the_value_and_the_limit(
    client: Client, field: dict[str, Any], parts: list[str]
) -> None:
    error = error_of(client.post("/completion", {"prompt": "a", **field}), 400, "invalid_parameter")
    assert [part for part in parts if part not in error["message"]] == []


def test_a_huge_value_is_shown_cut_short(client: Client) -> None:
    error = error_of(client.post("/completion", {"prompt": "a", "top_k": "x" * 100_000}), 400, "invalid_parameter")
    assert len(error["message"]) < 200


EDGES: list[tuple[str, Any]] = [
    *((name, edge) for name, edges in FLOATS.items() for edge in edges),
    ("repeat_penalty", 1e-300),
    ("repeat_penalty", 1e300),
    ("top_k", -(10**30)),
    ("top_k", 10**30),
    ("seed", -1),
    ("seed", 0),
    ("seed", 2**64 - 1),
    ("max_tokens", -1),
    ("max_tokens", 10**30),
    ("n_ctx", 512),
    ("n_batch", 10**30),
    ("n_threads", 10**30),
    ("repeat_last_n", -1),
    ("repeat_last_n", 0),
    ("repeat_last_n", 128),
    ("stop", []),
    ("stop", ""),
    ("stop", [""] * 16),
    ("stop", ["é" * 256]),
    ("logit_bias", {}),
    ("logit_bias", {"5": -100, "6": 100}),
    ("logit_bias", [[5, 1], [5, -1.5], [6, False]]),
    ("logit_bias", {str(token_id): 0 for token_id in range(261)}),
    ("stream_options", {"include_usage": True}),
    ("model", "gpt-4o"),
]


@pytest.mark.parametrize(("name", "value"), EDGES, ids=lambda item: str(item)[:20])
def test_a_value_at_the_edge_of_its_range_is_served(client: Client, name: str, value: Any) -> None:
    response = client.post("/completion", {"prompt": "abc", name: value})
    assert (response.status_code, response.json()["content"]) == (200, "abc")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[0])
def test_null_is_absent_and_unknown_names_are_ignored(client: Client, route: tuple[str, dict[str, Any]]) -> None:
    path, body = route
    names = [*FLOATS, *PENALTIES, *INTEGERS, *NEUTRAL, "stop", "stream", "stream_options", "logit_bias", "model"]
    assert client.post(path, {**body, **dict.fromkeys(names)}).status_code == 200
    assert client.post(path, {**body, "nobody_knows": {"this": [1]}, "": 1}).status_code == 200
    ignored = {"user": "ann", "metadata": {"a": 1}, "service_tier": "auto", "store": True}
    assert client.post(path, {**body, **ignored}).status_code == 200


BODIES = {"/chat/completions": ChatBody, "/completion": NativeBody, "/v1/completions": CompletionBody}
NOT_SERVED = [
    (route, name) for route in ROUTES for name in sorted(NEUTRAL) if name not in BODIES[route[0]].model_fields
]


@pytest.mark.parametrize(("route", "name"), NOT_SERVED, ids=lambda item: item if isinstance(item, str) else item[0])
def test_a_name_that_is_known_and_not_served_is_not_supported(
    client: Client, route: tuple[str, dict[str, Any]], name: str
) -> None:
    path, body = route
    for value in [{"some": "wish"}, "a wish", 7, 0.5]:
        error = error_of(client.post(path, {**body, name: value}), 400, "not_supported")
        assert (error["param"], error["type"]) == (name, "invalid_request_error")


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_value_that_asks_for_nothing_is_served(client: Client, name: str) -> None:
    for value in NEUTRAL[name]:
        assert client.post("/chat/completions", {**CHAT, name: value}).status_code == 200


@pytest.mark.parametrize("field", [{"best_of": True}, {"best_of": 2}, {"logprobs": 0}, {"echo": 0}, {"tools": [{}]}])
def test_what_only_resembles_a_neutral_value_is_not_supported(client: Client, field: dict[str, Any]) -> None:
    error_of(client.post("/completion", {"prompt": "a", **field}), 400, "not_supported")


TOP = [-1, 21, True, "1", 1.5, [1], {}]
OF_ONE_ROUTE: list[tuple[str, str, Any]] = [
    *((path, "n", value) for path in BODIES for value in [0, -1, 9, 10**30, True, "2", 1.5, [2]]),
    *((path, name, value) for path in BODIES for name in ("cache_prompt", "timings_per_token") for value in [0, "no"]),
    *(("/chat/completions", "top_logprobs", value) for value in TOP),
    *(("/chat/completions", "logprobs", value) for value in [0, 1, "true", []]),
    *(("/v1/completions", "logprobs", value) for value in TOP),
    *(("/v1/completions", "echo", value) for value in [0, 1, "true"]),
    *(("/v1/completions", "best_of", value) for value in [1.5, "1", True]),
    *((path, "prompt_logprobs", value) for path in ("/chat/completions", "/v1/completions") for value in TOP),
    *((path, "return_token_ids", value) for path in ("/chat/completions", "/v1/completions") for value in [0, "no"]),
    *(("/completion", "n_probs", value) for value in TOP),
    *(("/completion", "return_tokens", value) for value in [0, "no"]),
    *(("/completion", "response_fields", value) for value in ["content", [1], [None], ["a"] * 65, ["a" * 257], {}]),
]


@pytest.mark.parametrize(("path", "name", "value"), OF_ONE_ROUTE, ids=lambda item: str(item)[:20])
def test_a_bad_value_of_a_field_that_only_some_routes_have_is_refused_by_its_name(
    client: Client, path: str, name: str, value: Any
) -> None:
    body = {**CHAT, "prompt": "abc", name: value}
    error = error_of(client.post(path, body), 400, "invalid_parameter")
    assert error["param"] == name
    assert name in error["message"]


def test_the_likeliest_tokens_without_logprobs_are_refused_as_openai_does(client: Client) -> None:
    error = error_of(client.post("/chat/completions", {**CHAT, "top_logprobs": 2}), 400, "invalid_parameter")
    assert error["param"] == "top_logprobs"
    assert client.post("/chat/completions", {**CHAT, "top_logprobs": 0}).status_code == 200


def test_best_of_may_only_say_what_n_says(client: Client) -> None:
    body = {"prompt": "abc", "n": 2}
    assert len(client.post("/v1/completions", {**body, "best_of": 2}).json()["choices"]) == 2
    for value in (1, 3, 10**30):
        error = error_of(client.post("/v1/completions", {**body, "best_of": value}), 400, "not_supported")
        assert error["param"] == "best_of"


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_more_generations_than_one_request_may_have_are_refused_with_the_limit(path: str) -> None:
    with Client(max_queue=500) as client:
        assert client.post(path, {"prompt": ["a"] * 128}).status_code == 200
        assert client.post(path, {"prompt": ["a"] * 16, "n": 8}).status_code == 200
        for body in ({"prompt": ["a"] * 129}, {"prompt": ["a"] * 17, "n": 8}, {"prompt": [[1]] * 100_000}):
            error = error_of(client.post(path, body), 400, "invalid_parameter")
            assert error["param"] == "prompt"
            assert "128" in error["message"]


CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: list[tuple[Any, str]] = [
    (None, "invalid_parameter"),
    ([], "invalid_parameter"),
    ({}, "invalid_parameter"),
    ("hello", "invalid_parameter"),
    ([None], "invalid_parameter"),
    (["hello"], "invalid_parameter"),
    ([{}], "invalid_parameter"),
    ([{"role": "user"}], "invalid_parameter"),
    ([{"role": "user", "content": None}], "invalid_parameter"),
    ([{"content": "a"}], "invalid_parameter"),
    ([{"role": "User", "content": "a"}], "invalid_parameter"),
    ([{"role": 1, "content": "a"}], "invalid_parameter"),
    ([{"role": "user", "content": 1}], "invalid_parameter"),
    ([{"role": "user", "content": ["a"]}], "invalid_parameter"),
    ([{"role": "user", "content": [{"type": "text"}]}], "invalid_parameter"),
    ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "invalid_parameter"),
    ([{"role": "user", "content": [{"text": "a"}]}], "invalid_parameter"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}], "not_supported"),
    ([{"role": "tool", "content": "a"}], "invalid_parameter"),
    ([{"role": "user", "content": "a", "tool_call_id": "x"}], "invalid_parameter"),
    ([{"role": "assistant"}], "invalid_parameter"),
    ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "invalid_parameter"),
    (
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[]"}}]}],
        "invalid_parameter",
    ),
    (
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}],
        "invalid_parameter",
    ),
    (
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a b", "arguments": ""}}]}],
        "invalid_parameter",
    ),
    ([{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}], "invalid_parameter"),
    ([{"role": "function", "content": "a"}], "not_supported"),
    *(([{"role": "assistant", "content": "a", name: [{}]}], "not_supported") for name in NEUTRAL_IN_MESSAGE),
]


@pytest.mark.parametrize(("messages", "code"), MESSAGES, ids=lambda item: str(item)[:40])
def test_messages_that_cannot_be_served_are_refused(client: Client, messages: Any, code: str) -> None:
    body = {} if messages is None else {"messages": messages}
    assert error_of(client.post("/chat/completions", body), 400, code)["param"] == "messages"


def test_a_message_is_named_by_its_place(client: Client) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": 5}]}]
    error = error_of(client.post("/chat/completions", {"messages": turns}), 400, "invalid_parameter")
    assert "messages[1].content[0].text" in error["message"]


PROMPTS: list[tuple[Any, str]] = [
    (None, "invalid_parameter"),
    ([], "invalid_parameter"),
    (7, "invalid_parameter"),
    (True, "invalid_parameter"),
    ({}, "invalid_parameter"),
    ([True], "invalid_parameter"),
    ([1.5], "invalid_parameter"),
    ([None], "invalid_parameter"),
    ([-1], "invalid_parameter"),
    ([261], "invalid_parameter"),
    ([10**30], "invalid_parameter"),
    ([[]], "invalid_parameter"),
    ([[1], []], "invalid_parameter"),
    ([[1], 2], "invalid_parameter"),
    ([[[1]]], "invalid_parameter"),
    (["a", None], "invalid_parameter"),
    (["a", True], "invalid_parameter"),
    ([["a", 1.5]], "invalid_parameter"),
    ([{"prompt_string": "a"}], "invalid_parameter"),
    (["a", 261], "invalid_parameter"),
    ([[1], [261]], "invalid_parameter"),
    (["a", -1], "invalid_parameter"),
    ([1] + [""] * 200, "invalid_parameter"),
    (["a", "b" * 128], "context_length_exceeded"),
    ([[1], [1] * 128], "context_length_exceeded"),
    ([1, "b" * 127], "context_length_exceeded"),
]


@pytest.mark.parametrize("path", ["/completion", "/completions", "/v1/completions"])
@pytest.mark.parametrize(("prompt", "code"), PROMPTS, ids=lambda item: str(item)[:20])
def test_prompts_that_cannot_be_served_are_refused(client: Client, path: str, prompt: Any, code: str) -> None:
    body = {} if prompt is None else {"prompt": prompt}
    error = error_of(client.post(path, body), 400, code)
    assert code == "context_length_exceeded" or error["param"] == "prompt"
