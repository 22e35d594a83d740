"""instructor in the modes in which the server, not the model's good will, makes an answer valid."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import instructor
import openai
import pydantic
import pytest
from instructor.core import InstructorRetryException

from tests.clients.asked import MAX_FORM_TOKENS, MESSAGES
from tests.clients.served import KEY, Served

FORM: dict[str, Any] = {"model": "any", "messages": MESSAGES, "max_tokens": MAX_FORM_TOKENS, "max_retries": 0}


class Animal(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    kind: Literal["dog", "cat"]
    age: int = pydantic.Field(ge=0, le=99)


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as made:
        yield made


ENFORCED = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA]


@pytest.mark.parametrize("mode", ENFORCED)
def test_every_answer_validates(client: openai.OpenAI, mode: instructor.Mode) -> None:
    made = instructor.from_openai(client, mode=mode)
    for seed in range(5):
        assert isinstance(made.chat.completions.create(**FORM, response_model=Animal, seed=seed), Animal)


@pytest.mark.parametrize("mode", ENFORCED)
def test_a_stream_of_partial_answers_ends_in_a_whole_one(client: openai.OpenAI, mode: instructor.Mode) -> None:
    made = instructor.from_openai(client, mode=mode)
    *_, last = made.chat.completions.create_partial(**FORM, response_model=Animal, seed=1)
    Animal(**last.model_dump())


def test_a_refusal_names_its_code(client: openai.OpenAI) -> None:
    made = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    with pytest.raises(InstructorRetryException, match="temperature"):
        made.chat.completions.create(**FORM, response_model=Animal, temperature=3)


class Animals(pydantic.BaseModel):
    """More of them than fit into the context."""

    names: list[str] = pydantic.Field(min_length=2000)


def test_a_request_that_is_cancelled_is_aborted(server: Served) -> None:
    """The client without asyncio reads a stream to its end before it hands out the first part."""

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as client:
            made = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
            ask = {"model": "any", "messages": MESSAGES, "response_model": Animals, "max_retries": 0}
            asked = asyncio.create_task(made.chat.completions.create(**ask))
            await asyncio.to_thread(server.busy)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    with server.left_early():
        asyncio.run(leave())
