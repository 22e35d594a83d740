"""POST /v1/messages and its count_tokens: the object, the events, and errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service.api.asgi import Client, loading_client
from tests.service.api.test_responses import stream

PATH = "/v1/messages"
HELLO: dict[str, Any] = {"model": "any", "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}


def anthropic_error_of(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    body = response.json()
    assert response.status_code == status, body
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    return dict(body["error"])


def test_a_conversation_is_answered_with_a_message(client: Client) -> None:
    answer = client.post(PATH, HELLO).json()
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "fake")
    assert answer["content"] == [{"type": "text", "text": "hello"}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["usage"]["output_tokens"] == 6


def test_system_and_content_come_as_text_or_as_blocks(client: Client) -> None:
    blocks = [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "two"}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    body = {**HELLO, "system": blocks, "messages": [*turns, {"role": "user", "content": blocks}]}
    answer = client.post(PATH, body).json()
    assert answer["content"][0]["text"] == "one\ntwo"
    plain = {**body, "system": "one\ntwo", "messages": [*turns, {"role": "user", "content": "one\ntwo"}]}
    counts = [client.post(PATH + "/count_tokens", item).json() for item in (body, plain)]
    usage = answer["usage"]
    assert counts[0] == counts[1] == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


@pytest.mark.parametrize(
    ("fields", "text", "reason", "stopping"),
    [
        ({"max_tokens": 2}, "he", "max_tokens", None),
        ({"stop_sequences": ["lo", "x"]}, "hel", "stop_sequence", "lo"),
        ({"top_k": 5, "temperature": 0.0}, "hello", "end_turn", None),
    ],
)
def test_the_reason_of_the_end_is_told(
    client: Client, fields: dict[str, Any], text: str, reason: str, stopping: str | None
) -> None:
    answer = client.post(PATH, {**HELLO, **fields}).json()
    assert answer["content"][0]["text"] == text
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, stopping)
    events = stream(client, PATH, {**HELLO, **fields})
    (delta,) = [event["delta"] for event in events if event["type"] == "message_delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": stopping}


def test_a_stream_has_the_whole_sequence_of_events(client: Client) -> None:
    events = stream(client, PATH, HELLO)
    assert [event["type"] for event in events if event["type"] != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == "hello"
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["output_tokens"] == 0
    assert events[-2]["usage"]["output_tokens"] == 6


def test_an_error_in_mid_stream_is_an_event_in_the_same_shape() -> None:
    with Client(row_error=lambda row: "not a number" if row.request.num_generated == 2 else None) as client:
        events = stream(client, PATH, HELLO)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": None}, "invalid_parameter", "max_tokens"),
        ({"max_tokens": 0}, "invalid_parameter", "max_tokens"),
        ({"messages": None}, "invalid_parameter", "messages"),
        ({"messages": []}, "invalid_parameter", "messages"),
        ({"messages": "a"}, "invalid_parameter", "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "invalid_parameter", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not_supported", "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "not_supported", "messages"),
        ({"system": [{"type": "image"}]}, "not_supported", "system"),
        ({"system": 5}, "invalid_parameter", "system"),
        ({"stop_sequences": 5}, "invalid_parameter", "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "invalid_parameter", "stop_sequences"),
        ({"stop": ["x"]}, "not_supported", "stop"),
        ({"tools": [{"name": "a"}]}, "not_supported", "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "not_supported", "thinking"),
        ({"temperature": 3}, "invalid_parameter", "temperature"),
    ],
)
def test_what_cannot_be_served_is_refused_in_anthropics_shape(
    client: Client, fields: dict[str, Any], code: str, param: str
) -> None:
    error = anthropic_error_of(client.post(PATH, {**HELLO, **fields}), 400, "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)


def test_errors_from_all_layers_have_the_shape() -> None:
    with Client({"api_key": "k", "max_body_bytes": 1024}) as client:
        anthropic_error_of(client.post(PATH, HELLO), 401, "authentication_error")
        key = {"X-Api-Key": "k"}
        assert client.post(PATH, HELLO, headers=key).status_code == 200
        anthropic_error_of(client.post(PATH, b" " * 2000, headers=key), 413, "request_too_large")
        anthropic_error_of(client.get(PATH, headers=key), 405, "invalid_request_error")
        anthropic_error_of(client.post(PATH + "/batches", {}, headers=key), 404, "not_found_error")
        long = {**HELLO, "messages": [{"role": "user", "content": "a" * 600}]}
        error = anthropic_error_of(client.post(PATH, long, headers=key), 400, "invalid_request_error")
        assert error["code"] == "context_length_exceeded"


def test_while_the_model_loads_it_is_overloaded() -> None:
    with loading_client() as client:
        response = client.post(PATH, HELLO)
        anthropic_error_of(response, 503, "overloaded_error")
        assert response.headers["retry-after"]
