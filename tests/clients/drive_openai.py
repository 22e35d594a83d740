"""openai for Python: every route it knows, plain and streamed, from sync and async code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.clients.asked import ANIMAL, ENDLESS, MAX_FORM_TOKENS, MAX_TOKENS, MESSAGES, QUESTION, TOO_LONG, TOOLS
from tests.clients.served import KEY, Served


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as made:
        yield made


def greedy(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(model="any", messages=MESSAGES, temperature=0, max_tokens=MAX_TOKENS)
    assert answer.choices[0].message.content
    return answer.choices[0].message.content


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model


def test_a_plain_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=MESSAGES, seed=1, max_completion_tokens=MAX_TOKENS)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= MAX_TOKENS


def test_a_streamed_chat_says_what_a_plain_one_says(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="any",
        messages=MESSAGES,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == greedy(client)
    assert chunks[-1].choices[0].finish_reason
    assert last.usage is not None
    assert last.choices == []


def test_an_async_client_streams_the_same(server: Served, client: openai.OpenAI) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as there:
            stream = await there.chat.completions.create(
                model="any", messages=MESSAGES, temperature=0, max_tokens=MAX_TOKENS, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == greedy(client)


def test_the_clients_own_reader_of_streams_puts_the_answer_together(client: openai.OpenAI) -> None:
    # To this reader an answer that is cut off by max_tokens is an error.
    ask: Any = {"model": "any", "messages": MESSAGES, "temperature": 0, "stop": [" "]}
    with client.chat.completions.stream(**ask) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content == client.chat.completions.create(**ask).choices[0].message.content


def test_a_predicted_output_is_the_plain_one(client: openai.OpenAI) -> None:
    plain = greedy(client)
    answer = client.chat.completions.create(
        model="any",
        messages=MESSAGES,
        temperature=0,
        max_tokens=MAX_TOKENS,
        prediction={"type": "content", "content": plain.replace("a", "o")},
    )
    assert answer.choices[0].message.content == plain
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens is not None
    assert details.rejected_prediction_tokens is not None


def test_a_plain_and_a_streamed_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="any", prompt=QUESTION, temperature=0, max_tokens=MAX_TOKENS)
    stream = client.completions.create(model="any", prompt=QUESTION, temperature=0, max_tokens=MAX_TOKENS, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text != ""


def test_several_choices_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, n=3, seed=1, max_tokens=8, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_an_echoed_prompt_with_legacy_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="any", prompt=QUESTION, echo=True, logprobs=1, max_tokens=1)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith(QUESTION)
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_our_own_fields_travel_in_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, extra_body={"top_k": 5, "n_predict": 3, "ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_required_tool_is_called_with_arguments_for_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=1, max_tokens=MAX_FORM_TOKENS
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "find_animal"
    assert json.loads(call.function.arguments)["kind"] in ("dog", "cat")


def test_a_streamed_tool_call_is_the_plain_one(client: openai.OpenAI) -> None:
    def ask(**more: object) -> dict[str, object]:
        return {"model": "any", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "temperature": 0,
                "max_tokens": MAX_FORM_TOKENS, "parallel_tool_calls": False, **more}  # fmt: skip

    answer = client.chat.completions.create(**ask())
    with client.chat.completions.stream(**ask()) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].finish_reason == "tool_calls"
    (plain,), (streamed,) = answer.choices[0].message.tool_calls, whole.choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (plain.function.name, plain.function.arguments)


def test_the_result_of_a_tool_is_taken_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=1, max_tokens=MAX_FORM_TOKENS,
        parallel_tool_calls=False,
    )  # fmt: skip
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "a brown dog"}
    again = client.chat.completions.create(
        model="any", messages=[*MESSAGES, message, result], tools=TOOLS, tool_choice="none", max_tokens=MAX_TOKENS
    )
    assert again.choices[0].message.tool_calls is None


class Animal(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    kind: str = pydantic.Field(pattern="^(dog|cat)$")
    age: int = pydantic.Field(ge=0, le=99)


def test_an_answer_is_parsed_into_a_pydantic_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="any", messages=MESSAGES, response_format=Animal, seed=1, max_tokens=MAX_FORM_TOKENS
    )
    assert isinstance(answer.choices[0].message.parsed, Animal)


def test_an_answer_obeys_a_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any",
        messages=MESSAGES,
        seed=1,
        max_tokens=MAX_FORM_TOKENS,
        response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": ANIMAL, "strict": True}},
    )
    assert json.loads(answer.choices[0].message.content or "")["kind"] in ("dog", "cat")


def test_an_answer_is_some_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, seed=1, max_tokens=MAX_FORM_TOKENS, response_format={"type": "json_object"}
    )
    text = answer.choices[0].message.content
    assert text
    # Where a small model finds no end, max_tokens ends it, and what there is begins as an object.
    assert text.lstrip().startswith("{")
    assert answer.choices[0].finish_reason == "length" or isinstance(json.loads(text), dict)


def test_a_plain_and_a_streamed_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="any", input=QUESTION, temperature=0, max_output_tokens=MAX_TOKENS)
    with client.responses.stream(model="any", input=QUESTION, temperature=0, max_output_tokens=MAX_TOKENS) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == answer.output_text == greedy(client)


def test_a_refusal_is_a_bad_request_with_type_code_and_param(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=MESSAGES, temperature=3)
    error = caught.value
    assert (error.type, error.code, error.param) == ("invalid_request_error", "invalid_parameter", "temperature")


def test_a_refused_stream_is_a_bad_request_too(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": TOO_LONG}], stream=True)
    assert (caught.value.type, caught.value.code) == ("exceed_context_size_error", "context_length_exceeded")


def test_a_wrong_key_and_an_unknown_model_have_exceptions_of_their_own(server: Served, client: openai.OpenAI) -> None:
    with (
        openai.OpenAI(base_url=server.v1, api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_stream_that_is_closed_is_aborted(server: Served, client: openai.OpenAI) -> None:
    with server.left_early():
        stream = client.chat.completions.create(model="any", messages=MESSAGES, stream=True, extra_body=ENDLESS)
        assert next(iter(stream)).choices
        stream.close()


def test_an_async_request_that_is_cancelled_is_aborted(server: Served) -> None:
    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as there:
            asked = asyncio.create_task(
                there.chat.completions.create(model="any", messages=MESSAGES, extra_body=ENDLESS)
            )
            await asyncio.to_thread(server.busy)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    with server.left_early():
        asyncio.run(leave())
