"""litellm, by both names under which it reaches servers like ours, and with its own exceptions."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest

from tests.clients.asked import ANIMAL, ENDLESS, MAX_FORM_TOKENS, MAX_TOKENS, MESSAGES, QUESTION, TOO_LONG, TOOLS
from tests.clients.served import KEY, Served

GREEDY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": MAX_TOKENS}
FORM: dict[str, Any] = {**GREEDY, "max_tokens": MAX_FORM_TOKENS}


@pytest.fixture(params=["openai/any", "hosted_vllm/any"])
def there(server: Served, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": request.param, "api_base": server.v1, "api_key": KEY, "max_retries": 0}


def test_a_streamed_chat_says_what_a_plain_one_says(there: dict[str, Any]) -> None:
    answer = litellm.completion(**there, **GREEDY)
    chunks = list(litellm.completion(**there, **GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content != ""
    assert answer.usage.completion_tokens <= MAX_TOKENS
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert whole.choices[0].message.content == text
    assert whole.usage.completion_tokens == answer.usage.completion_tokens


def test_a_streamed_completion_says_what_a_plain_one_says(server: Served) -> None:
    ask = {"model": "text-completion-openai/any", "api_base": server.v1, "api_key": KEY, "max_retries": 0}
    more = {"prompt": QUESTION, "temperature": 0, "max_tokens": MAX_TOKENS}
    answer = litellm.text_completion(**ask, **more)
    chunks = litellm.text_completion(**ask, **more, stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == answer.choices[0].text != ""


# Not as hosted_vllm: there it drops `additionalProperties` from a tool's schema, and a small model finds no end then.
@pytest.mark.parametrize("there", ["openai/any"], indirect=True)
def test_tools_are_called_plain_and_streamed(there: dict[str, Any]) -> None:
    plain = litellm.completion(**there, **FORM, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    chunks = litellm.completion(
        **there, **FORM, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=True
    )
    streamed = litellm.stream_chunk_builder(list(chunks))
    for answer in (plain, streamed):
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "find_animal"
        assert json.loads(call.function.arguments)["kind"] in ("dog", "cat")


def test_an_answer_obeys_a_schema(there: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": ANIMAL, "strict": True}}
    answer = litellm.completion(**there, **FORM, response_format=form)
    assert json.loads(answer.choices[0].message.content)["kind"] in ("dog", "cat")


def test_a_refusal_is_a_bad_request(there: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature") as caught:
        litellm.completion(**there, **{**GREEDY, "temperature": 3})
    assert caught.value.status_code == 400


def test_a_prompt_that_is_too_long_is_known_as_such(there: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**there, messages=[{"role": "user", "content": TOO_LONG}])


def test_a_wrong_key_is_an_authentication_error(there: dict[str, Any]) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**there, "api_key": "wrong"}, **GREEDY)


def test_a_stream_that_is_closed_is_aborted(server: Served, there: dict[str, Any]) -> None:
    with server.left_early():
        stream = litellm.completion(**there, messages=MESSAGES, stream=True, extra_body=ENDLESS)
        assert next(stream).choices
        stream.close()
