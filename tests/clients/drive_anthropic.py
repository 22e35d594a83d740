"""anthropic on /v1/messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.asked import ANIMAL, ENDLESS, MAX_TOKENS, MESSAGES, TOO_LONG
from tests.clients.served import KEY, Served

# This client has dropped the samplers' fields from its signatures; the API has them still.
GREEDY: dict[str, Any] = {
    "model": "any",
    "messages": MESSAGES,
    "max_tokens": MAX_TOKENS,
    "extra_body": {"temperature": 0},
}


@pytest.fixture
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as made:
        yield made


def test_a_streamed_message_says_what_a_plain_one_says(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**GREEDY, system="Be brief.")
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens <= MAX_TOKENS
    with client.messages.stream(**GREEDY, system="Be brief.") as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == answer.content[0].text == last.content[0].text != ""
    assert last.usage.output_tokens == answer.usage.output_tokens


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="any", messages=MESSAGES)
    usage = client.messages.create(**GREEDY).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_refusal_has_anthropics_form(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature") as caught:
        client.messages.create(**{**GREEDY, "extra_body": {"temperature": 3}})
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(model="any", max_tokens=1, messages=[{"role": "user", "content": TOO_LONG}])


def test_tools_are_refused_on_this_route(client: anthropic.Anthropic) -> None:
    tool: Any = {"name": "find_animal", "input_schema": ANIMAL}
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        client.messages.create(**GREEDY, tools=[tool])


def test_a_wrong_key_is_an_authentication_error(server: Served) -> None:
    with (
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(**GREEDY)


def test_a_stream_that_is_closed_is_aborted(server: Served, client: anthropic.Anthropic) -> None:
    ask = {**GREEDY, "max_tokens": 100_000, "extra_body": ENDLESS}
    with server.left_early(), client.messages.stream(**ask) as stream:
        next(iter(stream.text_stream))
