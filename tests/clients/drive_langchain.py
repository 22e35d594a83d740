"""langchain-openai: ChatOpenAI and OpenAI."""

from __future__ import annotations

from typing import Any

import langchain_openai
import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage

from tests.clients.asked import ANIMAL, ENDLESS, MAX_FORM_TOKENS, MAX_TOKENS, QUESTION, TOO_LONG, TOOLS
from tests.clients.served import KEY, Served


def chat(server: Served, **more: Any) -> langchain_openai.ChatOpenAI:
    settings = {"temperature": 0, "max_tokens": MAX_TOKENS, "max_retries": 0, **more}
    return langchain_openai.ChatOpenAI(base_url=server.v1, api_key=KEY, model="any", **settings)


def test_a_streamed_chat_says_what_a_plain_one_says(server: Served) -> None:
    model = chat(server, stream_usage=True)
    answer = model.invoke(QUESTION)
    *chunks, last = model.stream(QUESTION)
    assert "".join(chunk.text for chunk in chunks) == answer.text != ""
    assert answer.usage_metadata is not None
    totals = [chunk.usage_metadata["total_tokens"] for chunk in [*chunks, last] if chunk.usage_metadata]
    assert totals == [answer.usage_metadata["total_tokens"]]


def test_a_streamed_completion_says_what_a_plain_one_says(server: Served) -> None:
    model = langchain_openai.OpenAI(
        base_url=server.v1, api_key=KEY, model="any", temperature=0, max_tokens=MAX_TOKENS, max_retries=0
    )
    assert "".join(model.stream(QUESTION)) == model.invoke(QUESTION) != ""


def test_a_batch_of_prompts_and_several_choices(server: Served) -> None:
    assert len(chat(server).batch([QUESTION, "Hello!", "Who are you?"])) == 3
    result = chat(server, n=2, temperature=0.8, logprobs=True).generate([[HumanMessage(QUESTION)]])
    assert len(result.generations[0]) == 2


def test_the_responses_api(server: Served) -> None:
    model = chat(server, use_responses_api=True)
    assert "".join(chunk.text for chunk in model.stream(QUESTION)) == model.invoke(QUESTION).text != ""


def test_tools_are_called_plain_and_streamed(server: Served) -> None:
    model = chat(server, max_tokens=MAX_FORM_TOKENS).bind_tools(
        TOOLS, tool_choice="required", parallel_tool_calls=False
    )
    plain = model.invoke(QUESTION)
    chunks = list(model.stream(QUESTION))
    streamed = sum(chunks[1:], chunks[0])
    for message in (plain, streamed):
        (call,) = message.tool_calls
        assert call["name"] == "find_animal"
        assert call["args"]["kind"] in ("dog", "cat")
    assert streamed.tool_calls[0]["args"] == plain.tool_calls[0]["args"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(server: Served, method: str) -> None:
    schema = {**ANIMAL, "title": "animal", "description": "An animal."}
    model = chat(server, max_tokens=MAX_FORM_TOKENS).with_structured_output(schema, method=method)
    assert model.invoke(QUESTION)["kind"] in ("dog", "cat")


def test_a_refusal_is_a_bad_request(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, temperature=3).invoke(QUESTION)
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "temperature")


def test_a_prompt_that_is_too_long_is_known_as_such(server: Served) -> None:
    with pytest.raises(ContextOverflowError):
        chat(server).invoke(TOO_LONG)


def test_a_stream_that_is_closed_is_aborted(server: Served) -> None:
    model = chat(server, max_tokens=None, extra_body=ENDLESS)
    with server.left_early():
        stream = model.stream(QUESTION)
        next(stream)
        stream.close()
