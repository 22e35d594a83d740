"""The shapes of answers, whole and streamed, on each family of routes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.api.asgi import CHAT, Client

CHAT_PATHS = ["/chat/completions", "/v1/chat/completions"]
NATIVE_PATHS = ["/completion", "/completions"]


@pytest.mark.parametrize("path", CHAT_PATHS)
def test_a_chat_answer_has_the_contracts_keys_and_openais(client: Client, path: str) -> None:
    answer = client.post(path, CHAT).json()
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello there"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (30, 12, 42)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert isinstance(answer["created"], int)
    assert answer["model"] == "fake"


@pytest.mark.parametrize("path", CHAT_PATHS)
def test_a_chat_stream_is_role_text_finish_and_done(client: Client, path: str) -> None:
    response, events = client.stream(path, CHAT)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "hello there"
    assert deltas[-1] == {}
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert not any("usage" in event for event in events)


@pytest.mark.parametrize("path", [*CHAT_PATHS, "/v1/completions"])
def test_usage_comes_in_a_last_chunk_without_choices_only_when_asked_for(client: Client, path: str) -> None:
    _, events = client.stream(path, {**CHAT, "prompt": "abc", "stream_options": {"include_usage": True}})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] > 0
    assert all(event["usage"] is None for event in events[:-1])


def test_a_text_completion_has_openais_shape(client: Client) -> None:
    answer = client.post("/v1/completions", {"prompt": "abc"}).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["completion_tokens"] == 4
    _, events = client.stream("/v1/completions", {"prompt": "abc"})
    assert "".join(event["choices"][0]["text"] for event in events) == "abc"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


NATIVE_KEYS = {
    "content",
    "tokens",
    "stop",
    "stop_type",
    "stopping_word",
    "tokens_predicted",
    "tokens_evaluated",
    "tokens_cached",
    "truncated",
    "generation_settings",
    "prompt",
    "model",
    "timings",
    "index",
    "has_new_line",
}


@pytest.mark.parametrize("path", NATIVE_PATHS)
def test_a_native_answer_has_llama_cpps_shape(client: Client, path: str) -> None:
    answer = client.post(path, {"prompt": "one\ntwo"}).json()
    assert answer.keys() >= NATIVE_KEYS
    assert answer["content"] == "one\ntwo"
    assert (answer["stop"], answer["stop_type"], answer["stopping_word"]) == (True, "eos", "")
    assert (answer["tokens"], answer["index"], answer["truncated"]) == ([], 0, False)
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (8, 8)
    assert answer["has_new_line"] is True
    assert answer["prompt"] == "one\ntwo"
    timings = answer["timings"]
    assert timings["cache_n"] + timings["prompt_n"] == answer["tokens_evaluated"]
    assert timings["predicted_n"] == 8


@pytest.mark.parametrize("path", NATIVE_PATHS)
def test_a_native_stream_serves_its_own_readers_and_those_of_chat_deltas(client: Client, path: str) -> None:
    _, events = client.stream(path, {"prompt": "one\ntwo"})
    assert "".join(event["content"] for event in events) == "one\ntwo"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "one\ntwo"
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].keys() >= NATIVE_KEYS
    assert events[-1]["content"] == ""
    assert events[-1]["has_new_line"] is True
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_prompt_may_be_token_ids(client: Client) -> None:
    answer = client.post("/completion", {"prompt": [256, 104, 105]}).json()
    assert (answer["content"], answer["prompt"]) == ("hi", [256, 104, 105])


def test_an_empty_prompt_is_the_start_token_alone(client: Client) -> None:
    answer = client.post("/completion", {"prompt": "", "n_predict": 1}).json()
    assert (answer["tokens_evaluated"], answer["content"]) == (1, "")


@pytest.mark.parametrize(
    ("fields", "content", "kind", "word", "reason"),
    [
        ({}, "stop here now", "eos", "", "stop"),
        ({"stop": ["here"]}, "stop ", "word", "here", "stop"),
        ({"stop": "now"}, "stop here ", "word", "now", "stop"),
        ({"stop": ["", "op"]}, "st", "word", "op", "stop"),
        ({"n_predict": 4}, "stop", "limit", "", "length"),
        ({"n_predict": 0}, "", "limit", "", "length"),
    ],
)
def test_why_a_generation_ended_is_told_on_every_route(
    client: Client, fields: dict[str, Any], content: str, kind: str, word: str, reason: str
) -> None:
    native = client.post("/completion", {"prompt": "stop here now", **fields}).json()
    assert (native["content"], native["stop_type"], native["stopping_word"]) == (content, kind, word)
    assert native["truncated"] is False
    openai = client.post("/v1/completions", {"prompt": "stop here now", **fields}).json()
    assert (openai["choices"][0]["text"], openai["choices"][0]["finish_reason"]) == (content, reason)
    _, events = client.stream("/completion", {"prompt": "stop here now", **fields})
    assert "".join(event["content"] for event in events) == content
    assert (events[-1]["stop_type"], events[-1]["choices"][0]["finish_reason"]) == (kind, reason)


def test_reaching_the_context_ends_with_length_and_truncated(client: Client) -> None:
    answer = client.post("/completion", {"prompt": "a long enough text", "n_ctx": 24}).json()
    assert answer["tokens_evaluated"] + answer["tokens_predicted"] == 24
    assert (answer["stop_type"], answer["truncated"]) == ("limit", True)


def test_text_of_any_script_survives_both_ways(client: Client) -> None:
    text = "zwölf Boxkämpfer 十二 \u2028 🥊"
    assert client.post("/completion", {"prompt": text}).json()["content"] == text
    response, events = client.stream("/completion", {"prompt": text})
    assert response.text.isascii()
    assert "".join(event["content"] for event in events) == text


def test_the_messages_reach_the_template_in_order(client: Client) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "name": "Ann", "content": "four"},
    ]
    expected = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    tokens = [
        client.post("/chat/completions", {"messages": turns, "max_tokens": 0}).json()["usage"]["prompt_tokens"]
        for turns in (messages, expected)
    ]
    assert tokens[0] == tokens[1]
    answer = client.post("/chat/completions", {"messages": messages[:2]}).json()
    assert answer["choices"][0]["message"]["content"] == "one\ntwo"
