"""Formats and tools in the body and in the answer, over an engine that obeys grammars and knows nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from service.api.tools import MAX_TOOL_BYTES, MAX_TOOLS
from tests.service.api.asgi import CHAT, Client, error_of
from tests.service.engine.fakes import obedient

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["answer", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "decide", "description": "Decide it.", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "wait"}}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def constrained() -> Iterator[Client]:
    with Client(choose=obedient, grammars=True, n_ctx=2048, num_blocks=512) as client:
        yield client
        client.until(lambda: client.engine.stats()["blocks_used"] == 0)


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": BY_SCHEMA},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/v1/completions", "/completion"])
def test_an_answer_satisfies_the_schema(constrained: Client, path: str, field: dict[str, Any]) -> None:
    answer = constrained.post(path, {**CHAT, "prompt": "a", **field}).json()
    choice = answer.get("choices", [{}])[0]
    text = answer.get("content") or choice.get("text") or choice["message"]["content"]
    jsonschema.validate(json.loads(text), SCHEMA)
    assert choice.get("finish_reason", "stop") == "stop"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ({"regex": "(ab){3}"}, "ababab"),
        ({"grammar": 'root ::= "x" "y"'}, "xy"),
        ({"grammar": 'start: "x" /y/'}, "xy"),
        ({"json_schema": {"const": None}}, "null"),
        ({"structured_outputs": {"json": {"const": "a"}, "regex": None}}, '"a"'),
        ({"structured_outputs": {"json": '{"const": "a"}'}}, '"a"'),
        ({"structured_outputs": {"regex": "(ab){3}"}}, "ababab"),
        ({"structured_outputs": {"choice": ['a ::= "\\é😀\n']}}, 'a ::= "\\é😀\n'),
        ({"structured_outputs": {"grammar": 'root ::= "x"'}}, "x"),
        ({"guided_json": {"const": 1}}, "1"),
        ({"guided_regex": "x"}, "x"),
        ({"guided_choice": ["yes"]}, "yes"),
        ({"guided_grammar": 'start: "x"'}, "x"),
    ],
)
def test_an_answer_matches_the_grammar(constrained: Client, field: dict[str, Any], text: str) -> None:
    assert constrained.post("/completion", {"prompt": "a", **field}).json()["content"] == text


@pytest.mark.parametrize(
    "field", [{"grammar": ""}, {"regex": ""}, {"response_format": {"type": "text"}}, {"tools": []}]
)
def test_what_asks_for_nothing_constrains_nothing(constrained: Client, field: dict[str, Any]) -> None:
    answer = constrained.post("/chat/completions", {**CHAT, "max_tokens": 5, **field}).json()["choices"][0]
    assert (len(answer["message"]["content"]), answer["finish_reason"]) == (5, "length")


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True, "disable_fallback": True}},
    ],
)
def test_any_object_begins_as_one(constrained: Client, field: dict[str, Any]) -> None:
    assert constrained.post("/completion", {"prompt": "a", "max_tokens": 2, **field}).json()["content"][0] == "{"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {}}, "response_format", "type"),
    ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format", "schema"),
    ({"response_format": {**BY_SCHEMA, "json_schema": {"name": "a b", "schema": {}}}}, "response_format", "name"),
    ({"response_format": "json_object"}, "response_format", "object"),
    ({"json_schema": {"type": "object", "properties": {"a": {"not": {}}}}}, "json_schema", "not"),
    ({"json_schema": [1]}, "json_schema", "dictionary"),
    ({"json_schema": {"type": "integer", "multipleOf": 10_001}}, "json_schema", "10000"),
    (
        {"json_schema": {"anyOf": [{"type": "number", "multipleOf": step} for step in (0.07, 11, 13)]}},
        "json_schema",
        "more than 10000",
    ),
    ({"json_schema": {"enum": ["x" * 65_000, "y" * 1000]}}, "json_schema", "limit is 65536"),
    ({"grammar": "x ::= (", "max_tokens": 1}, "grammar", "grammar"),
    ({"grammar": 5}, "grammar", "string"),
    ({"grammar": 'start: %json {"multipleOf": 999983}'}, "grammar", "json_schema"),
    ({"regex": "a("}, "regex", "unclosed group"),
    ({"regex": "\ud800"}, "regex", ""),
    ({"guided_choice": ["a", "\udfff"]}, "guided_choice", ""),
    ({"guided_choice": []}, "guided_choice", "at least 1"),
    ({"guided_json": "[1]"}, "guided_json", "JSON schema"),
    ({"guided_json": "{"}, "guided_json", "JSON schema"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs", "structural_tag"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "cannot be combined"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex", "structured_outputs"),
    ({"structured_outputs": "a"}, "structured_outputs", "object"),
    ({"regex": "a", "grammar": 'root ::= "a"'}, "regex", "grammar"),
    ({"json_schema": {}, "response_format": BY_SCHEMA}, "json_schema", "response_format"),
    ({"tools": [TOOL], "response_format": BY_SCHEMA}, "response_format", "tools"),
    ({"tools": [TOOL, TOOL]}, "tools", "same name"),
    ({"tools": [OTHER] * (MAX_TOOLS + 1)}, "tools", str(MAX_TOOLS)),
    ({"tools": {}}, "tools", "list"),
    ({"tools": [{"type": "code"}]}, "tools", "function"),
    ({"tools": [{"type": "function"}]}, "tools", "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "a b"),
    ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, "tools", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "tools", "object"),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"description": "a" * 50_000}}}]},
        "tools",
        str(MAX_TOOL_BYTES),
    ),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}, "tools", "not"),
    ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "auto"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "auto"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "x"),
    ({"tool_choice": "required"}, "tool_choice", "tools"),
    ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls", "bool"),
]


@pytest.mark.parametrize(("fields", "param", "reason"), REFUSED, ids=lambda item: str(item)[:50])
def test_what_cannot_be_honoured_is_refused_with_field_and_reason(
    constrained: Client, fields: dict[str, Any], param: str, reason: str
) -> None:
    for stream in (False, True):
        response = constrained.post("/chat/completions", {**CHAT, **fields, "stream": stream})
        error = error_of(response, 400, "invalid_parameter")
        assert error["param"] == param
        assert reason in error["message"]


@pytest.mark.parametrize("depth", [60, 700, 20_000])
def test_deep_schemas_are_refused(constrained: Client, depth: int) -> None:
    schema = '{"type":"array","items":' * depth + '{"not":{}}' + "}" * depth
    for field in ('"json_schema":SCHEMA', '"tools":[{"type":"function","function":{"name":"a","parameters":SCHEMA}}]'):
        body = '{"messages":[{"role":"user","content":"a"}],' + field.replace("SCHEMA", schema) + "}"
        response = constrained.post("/chat/completions", body.encode())
        assert response.status_code == 400


def test_templates_and_token_counts_are_told_of_tools(constrained: Client) -> None:
    bare = constrained.post("/apply-template", CHAT).json()["prompt"]
    told = constrained.post("/apply-template", {**CHAT, "tools": [TOOL]}).json()["prompt"]
    assert "Decide it." in told
    assert "Decide it." not in bare
    counts = [constrained.post("/tokenize", {**CHAT, **more}).json()["count"] for more in ({}, {"tools": [TOOL]})]
    assert counts[1] > counts[0] + 200


def call_of(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of the one call of a message."""
    (call,) = message["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    return call["function"]["name"], json.loads(call["function"]["arguments"])


NAMED = {"type": "function", "function": {"name": "decide"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_required_is_made(constrained: Client, choice: object) -> None:
    body = {**CHAT, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    answer = constrained.post("/chat/completions", body).json()["choices"][0]
    assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
    name, arguments = call_of(answer["message"])
    assert name == "decide"
    jsonschema.validate(arguments, SCHEMA)


def test_the_function_that_is_named_is_the_one_that_is_called(constrained: Client) -> None:
    for name in ("decide", "wait"):
        body = {**CHAT, "tools": [TOOL, OTHER], "tool_choice": {"type": "function", "function": {"name": name}}}
        assert call_of(constrained.post("/chat/completions", body).json()["choices"][0]["message"])[0] == name


def test_a_streamed_call_comes_name_first_and_then_in_pieces(constrained: Client) -> None:
    _, events = constrained.stream("/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": NAMED})
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    (begun,) = deltas[1]["tool_calls"]
    assert (begun["index"], begun["type"]) == (0, "function")
    assert begun["function"] == {"name": "decide", "arguments": ""}
    pieces = [delta["tool_calls"][0] for delta in deltas[2:-1]]
    assert all(piece.keys() == {"index", "function"} and piece["index"] == 0 for piece in pieces)
    jsonschema.validate(json.loads("".join(piece["function"]["arguments"] for piece in pieces)), SCHEMA)
    assert (deltas[-1], events[-1]["choices"][0]["finish_reason"]) == ({}, "tool_calls")


def test_with_auto_an_answer_may_be_words(constrained: Client) -> None:
    answer = constrained.post("/chat/completions", {**CHAT, "tools": [TOOL]}).json()["choices"][0]
    assert answer["finish_reason"] == "stop"  # the engine ends as soon as it may
    assert answer["message"].keys() == {"role", "content"}


def test_a_call_that_is_cut_has_finish_reason_length(constrained: Client) -> None:
    body = {**CHAT, "tools": [TOOL], "tool_choice": NAMED, "max_tokens": 55}
    answer = constrained.post("/chat/completions", body).json()["choices"][0]
    assert answer["finish_reason"] == "length"
    assert answer["message"]["tool_calls"][0]["function"]["arguments"].startswith("{")


def test_the_model_is_told_of_tools_unless_none_may_be_called() -> None:
    with Client(n_ctx=2048, num_blocks=512, grammars=True) as client:
        call = {"id": "c1", "type": "function", "function": {"name": "decide", "arguments": '{"answer": "no", "n": 1}'}}
        history = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "it is no"},
        ]
        told = client.post("/chat/completions", {"messages": history, "tools": [TOOL], "tool_choice": "none"})
        assert told.json()["choices"][0]["message"]["content"] == "<tool_response>\nit is no\n</tool_response>"
        without = told.json()["usage"]["prompt_tokens"]
        body = {"messages": history, "tools": [TOOL], "max_tokens": 0}
        assert client.post("/chat/completions", body).json()["usage"]["prompt_tokens"] > without + 200


def test_an_engine_without_grammars_says_so(client: Client) -> None:
    error = error_of(client.post("/completion", {"prompt": "a", "regex": "a"}), 400, "invalid_parameter")
    assert error["param"] == "regex"


@pytest.mark.parametrize("path", ["/v1/completions", "/chat/completions"])
def test_each_choice_obeys_by_itself(constrained: Client, path: str) -> None:
    body = {**CHAT, "prompt": "a", "json_schema": SCHEMA, "n": 3, "logprobs": 2, "seed": 4}
    if path == "/chat/completions":
        body["logprobs"] = True
    choices = constrained.post(path, {**body}).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for choice in choices:
        jsonschema.validate(json.loads(choice.get("text") or choice["message"]["content"]), SCHEMA)
        assert choice["logprobs"]


def test_streamed_choices_call_each_by_themselves_and_tell_of_every_token_once(constrained: Client) -> None:
    body = {**CHAT, "tools": [TOOL, OTHER], "tool_choice": "required", "n": 3, "logprobs": True, "seed": 2}
    body |= {"parallel_tool_calls": False, "return_token_ids": True}
    _, events = constrained.stream("/chat/completions", body)
    of_choice: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        (choice,) = event["choices"]
        of_choice.setdefault(choice["index"], []).append(choice)
    assert sorted(of_choice) == [0, 1, 2]
    for choices in of_choice.values():
        assert choices[-1]["finish_reason"] == "tool_calls"
        pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", ())]
        arguments = "".join(piece["function"].get("arguments", "") for piece in pieces)
        if pieces[0]["function"]["name"] == "decide":
            jsonschema.validate(json.loads(arguments), SCHEMA)
        told = [entry["token"] for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
        assert "".join(told).startswith('<tool_call>\n{"name": "')
        assert arguments in "".join(told)
        assert len(told) <= len([token for choice in choices for token in choice["token_ids"]])
