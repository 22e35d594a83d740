"""POST /v1/responses: the object, the sequence of events, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.service.api.asgi import Client, error_of
from tests.service.engine.fakes import END

PATH = "/v1/responses"


def named_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream in which each has its type on a line before the data."""
    *frames, done = [frame for frame in text.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    assert done == "data: [DONE]"
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def stream(client: Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post(path, {**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    return named_events(response.text)


def test_a_text_is_answered_with_a_response_object(client: Client) -> None:
    answer = client.post(PATH, {"input": "hello", "instructions": "be brief", "temperature": 0, "store": True}).json()
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == 6
    assert (answer["temperature"], answer["instructions"], answer["store"]) == (0, "be brief", False)


def test_a_conversation_comes_as_items_our_own_output_among_them(client: Client) -> None:
    first = client.post(PATH, {"input": "one"}).json()
    items = [
        {"role": "user", "content": "one"},
        *first["output"],
        {"role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in ("two", "three")]},
    ]
    answer = client.post(PATH, {"input": items}).json()
    assert answer["output"][0]["content"][0]["text"] == "two\nthree"


def test_instructions_are_a_system_message_in_front(client: Client) -> None:
    chat = {"messages": [{"role": "system", "content": "rules"}, {"role": "user", "content": "hi"}]}
    as_chat = client.post("/chat/completions", chat).json()
    answer = client.post(PATH, {"input": "hi", "instructions": "rules"}).json()
    assert answer["usage"]["input_tokens"] == as_chat["usage"]["prompt_tokens"]


def test_output_that_was_cut_is_incomplete(client: Client) -> None:
    answer = client.post(PATH, {"input": "hello", "max_output_tokens": 2}).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["content"][0]["text"] == "he"
    assert answer["max_output_tokens"] == 2


@pytest.mark.parametrize(("limit", "last"), [(None, "response.completed"), (3, "response.incomplete")])
def test_a_stream_has_the_whole_sequence_of_events(client: Client, limit: int | None, last: str) -> None:
    events = stream(client, PATH, {"input": "hello", "max_output_tokens": limit})
    kinds = [event["type"] for event in events if event["type"] != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        last,
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == "hello"[:limit]
    assert events[-4]["text"] == text
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text
    assert events[0]["response"]["status"] == "in_progress"
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


def test_an_error_in_mid_stream_is_an_event_of_its_own() -> None:
    with Client(row_error=lambda row: "not a number" if row.request.num_generated == 2 else None) as client:
        events = stream(client, PATH, {"input": "hello"})
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["code"] == events[-1]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "invalid_parameter", "input"),
        ({"input": []}, "invalid_parameter", "input"),
        ({"input": 5}, "invalid_parameter", "input"),
        ({"input": [5]}, "invalid_parameter", "input"),
        ({"input": [{"role": "nobody", "content": "a"}]}, "invalid_parameter", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "not_supported", "input"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "not_supported", "input"),
        ({"input": "a", "max_output_tokens": 0}, "invalid_parameter", "max_output_tokens"),
        ({"input": "a", "max_tokens": 5}, "not_supported", "max_tokens"),
        ({"input": "a", "temperature": 3}, "invalid_parameter", "temperature"),
        ({"input": "a", "previous_response_id": "resp-1"}, "not_supported", "previous_response_id"),
        ({"input": "a", "conversation": "c"}, "not_supported", "conversation"),
        ({"input": "a", "background": True}, "not_supported", "background"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "not_supported", "tools"),
        ({"input": "a", "text": {"format": {"type": "json_object"}}}, "not_supported", "text"),
        ({"input": "a", "n": 2}, "not_supported", "n"),
        ({"input": "a", "top_logprobs": 2}, "not_supported", "top_logprobs"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_name(
    client: Client, fields: dict[str, Any], code: str, param: str
) -> None:
    assert error_of(client.post(PATH, fields), 400, code)["param"] == param


def test_what_carries_no_behaviour_is_taken(client: Client) -> None:
    fields = {
        "user": "u",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "truncation": "disabled",
        "tools": [],
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
        "previous_response_id": None,
    }
    assert client.post(PATH, {"input": "a", **fields}).status_code == 200


def test_control_tokens_in_an_item_are_the_templates_to_write(client: Client) -> None:
    answer = client.post(PATH, {"input": f"a{END}b"}).json()
    assert answer["output"][0]["content"][0]["text"] == f"a{END}b"
