"""Formats, grammars and tools over a running server: the demo model, OpenAI's client, and hostile requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.server.live import Live
from tests.service.engine.fakes import obedient
from tests.service.engine.test_grammar_compiler import HOSTILE

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "legs", "kind"],
    "additionalProperties": False,
}
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me of a cat."}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "draw", "description": "Draw an animal.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "wait"}},
]
STORY = {"prompt": "Once upon a time", "n_predict": 60, "seed": 7, "ignore_eos": False}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}


@pytest.fixture
def client(demo: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=demo.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("seed", range(3))
def test_a_chat_by_schema(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(model="any", messages=MESSAGES, response_format=FORMAT, seed=seed)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def test_a_streamed_chat_by_schema(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="any", messages=MESSAGES, response_format=FORMAT, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)), SCHEMA)


def test_any_json_object(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, response_format=form, max_tokens=1500, seed=1
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "draw"}}])
def test_a_tool_call(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=3
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    if call.function.name == "draw":
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    history = [
        *MESSAGES,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    after = client.chat.completions.create(model="any", messages=history, tools=TOOLS, max_tokens=5)
    assert after.usage is not None
    assert after.usage.prompt_tokens > 20


def test_a_streamed_tool_call_is_put_together_by_the_client(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "draw"}}
    with client.chat.completions.stream(model="any", messages=MESSAGES, tools=TOOLS, tool_choice=choice) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.finish_reason == "tool_calls"
    (call,) = final.message.tool_calls or []
    assert call.function.name == "draw"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_with_auto_words_stay_words(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=MESSAGES, tools=TOOLS, max_tokens=20, seed=1)
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_a_refusal_names_the_keyword(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not") as caught:
        client.chat.completions.create(model="any", messages=MESSAGES, response_format=form)
    assert caught.value.param == "response_format"


def frames_of(url: str, body: dict[str, Any]) -> list[str]:
    """The pieces of text of a native stream."""
    with httpx.stream("POST", url + "/completion", json={**body, "stream": True}, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: "))["content"] for line in lines]


def test_a_stream_beside_constrained_ones_is_byte_for_byte_what_it_is_alone(demo: Live) -> None:
    alone = "".join(frames_of(demo.url, STORY))
    texts: list[str] = []
    others = [
        threading.Thread(
            target=lambda seed=seed: texts.append(
                demo.post("/completion", {"prompt": "x", "json_schema": SCHEMA, "seed": seed}).json()["content"]
            )
        )
        for seed in range(6)
    ]
    for other in others:
        other.start()
    beside = "".join(frames_of(demo.url, STORY))
    for other in others:
        other.join()
    assert beside == alone
    assert len(alone) > 100
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


FIELDS = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}


def body_of(kind: str, text: str) -> bytes:
    value = text if kind == "json_schema" else json.dumps(text)
    return f'{{"prompt": "a", "n_predict": 20, "{FIELDS[kind]}": {value}}}'.encode()


def test_hostile_grammars_get_their_answers_while_a_stream_goes_on() -> None:
    stamps: list[float] = []
    with Live(choose=obedient, grammars=True, n_ctx=16_000, num_blocks=2200, step_s=0.002) as live:
        ended = threading.Event()

        def follow() -> None:
            body = {"prompt": "a", "stream": True, "n_predict": 15_000}
            with live.http.stream("POST", live.url + "/completion", json=body) as response:
                for _ in response.iter_lines():
                    stamps.append(time.monotonic())
                    if ended.is_set():
                        return

        reader = threading.Thread(target=follow)
        reader.start()
        statuses = {}
        for name, (kind, text) in HOSTILE.items():
            before, started_s = len(stamps), time.monotonic()
            response = live.http.post(live.url + "/completion", content=body_of(kind, text))
            statuses[name] = response.status_code
            if time.monotonic() - started_s > 1.0:
                assert len(stamps) > before + 20, f"the stream stood still during {name}"
        ended.set()
        reader.join(20)
        live.at_rest()
    assert set(statuses.values()) <= {200, 400}
    assert statuses["nested repetition"] == statuses["pattern"] == statuses["deep gbnf"] == 400
    assert max(after - before for before, after in pairwise(stamps)) < 3  # on a loaded machine


def test_a_grammar_that_fails_on_its_way_ends_its_request_with_400_or_an_event(demo: Live) -> None:
    body = {"prompt": "a", "regex": "[b-z ]{40}((a{1000}){1000}){1000}"}
    response = demo.post("/completion", body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_parameter"
    with httpx.stream("POST", demo.url + "/completion", json={**body, "stream": True}, timeout=20) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert stream.status_code == 200
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "invalid_request_error"
    assert lines[-1] == "data: [DONE]"
