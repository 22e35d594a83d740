"""llama-index-llms-openai-like, as a chat model and as a text model."""

from __future__ import annotations

import gc
from typing import Any

import openai
import pydantic
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients.asked import ENDLESS, MAX_FORM_TOKENS, MAX_TOKENS, QUESTION, TOO_LONG
from tests.clients.served import KEY, Served

MESSAGES = [ChatMessage(role="user", content=QUESTION)]


def llm(server: Served, *, chat: bool = True, **more: Any) -> OpenAILike:
    settings = {"temperature": 0, "max_tokens": MAX_TOKENS, "context_window": 2048, **more}
    return OpenAILike(
        model="any",
        api_base=server.v1,
        api_key=KEY,
        is_chat_model=chat,
        is_function_calling_model=chat,
        max_retries=0,
        **settings,
    )


def test_a_streamed_chat_says_what_a_plain_one_says(server: Served) -> None:
    answer = llm(server).chat(MESSAGES).message.content
    assert answer
    assert "".join(piece.delta or "" for piece in llm(server).stream_chat(MESSAGES)) == answer


def test_a_streamed_completion_says_what_a_plain_one_says(server: Served) -> None:
    answer = llm(server, chat=False).complete(QUESTION).text
    assert answer
    assert "".join(piece.delta or "" for piece in llm(server, chat=False).stream_complete(QUESTION)) == answer


class Animal(pydantic.BaseModel):
    """An animal."""

    model_config = pydantic.ConfigDict(extra="forbid")

    kind: str = pydantic.Field(pattern="^(dog|cat)$")
    age: int = pydantic.Field(ge=0, le=99)


def find_animal(kind: str, age: int) -> str:
    """Find an animal."""
    return f"a {kind} of {age}"


def test_a_required_tool_is_called(server: Served) -> None:
    model = llm(server, max_tokens=MAX_FORM_TOKENS)
    tool = FunctionTool.from_defaults(find_animal, fn_schema=Animal)
    answer = model.chat_with_tools([tool], QUESTION, tool_required=True)
    (call,) = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "find_animal"
    Animal(**call.tool_kwargs)


def test_a_pydantic_model_is_filled_by_a_call(server: Served) -> None:
    program = FunctionCallingProgram.from_defaults(
        Animal, llm=llm(server, max_tokens=MAX_FORM_TOKENS), prompt_template_str=QUESTION, tool_required=True
    )
    assert isinstance(program(), Animal)


def test_structured_prediction(server: Served) -> None:
    model = llm(server, max_tokens=MAX_FORM_TOKENS, should_use_structured_outputs=True)
    assert isinstance(model.as_structured_llm(Animal).chat(MESSAGES).raw, Animal)


def test_a_refusal_is_a_bad_request(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        llm(server, temperature=2, additional_kwargs={"top_p": 3}).chat(MESSAGES)
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "top_p")


def test_a_prompt_that_is_too_long_is_refused(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        llm(server).chat([ChatMessage(role="user", content=TOO_LONG)])
    assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_is_dropped_is_aborted(server: Served) -> None:
    """There is no way to close one: its connection goes with the last reference to it."""
    model = llm(server, max_tokens=1900, additional_kwargs={"extra_body": ENDLESS})
    with server.left_early():
        stream = model.stream_chat(MESSAGES)
        next(stream)
        del stream
        gc.collect()
