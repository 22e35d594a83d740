"""Anthropic's own client against a running server."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from tests.server.live import Live
from tests.service.engine.fakes import endless

HELLO: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello, zwölf 🥊!"}]
OURS = {"temperature": 0.5, "top_k": 5, "seed": 1}  # of temperature, newer versions of the client know nothing


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="any", max_tokens=64, messages=HELLO, system="be brief", extra_body=OURS)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == "Hello, zwölf 🥊!"
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == len("Hello, zwölf 🥊!".encode()) + 1


def test_blocks_and_stop_sequences(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="any",
        max_tokens=64,
        messages=[{"role": "user", "content": [{"type": "text", "text": "one two"}]}],
        stop_sequences=[" t"],
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " t")
    assert [block.text for block in answer.content if block.type == "text"] == ["one"]


def test_a_stream_of_events(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(model="any", max_tokens=4, messages=HELLO, stream=True))
    assert [event.type for event in events if event.type != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_clients_own_reader_of_streams_puts_the_message_together(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="any", max_tokens=64, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "Hello, zwölf 🥊!"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(text.encode()) + 1


def test_counting_tokens_agrees_with_what_a_message_costs(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="any", messages=HELLO, system="be brief")
    usage = client.messages.create(model="any", max_tokens=1, messages=HELLO, system="be brief").usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_refusal_is_the_clients_exception_for_it(client: anthropic.Anthropic, live: Live) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model="any", max_tokens=4, messages=HELLO, extra_body={"temperature": 3})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.list()


def test_a_key_is_sent_as_this_client_sends_it() -> None:
    with Live({"api_key": "secret"}) as live:
        with (
            anthropic.Anthropic(base_url=live.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(model="any", max_tokens=4, messages=HELLO)
        with anthropic.Anthropic(base_url=live.url, api_key="secret", max_retries=0) as client:
            assert client.messages.create(model="any", max_tokens=4, messages=HELLO).stop_reason == "max_tokens"


def test_a_stream_that_is_left_ends_its_generation() -> None:
    with (
        Live(choose=endless, step_s=0.002, n_ctx=400) as live,
        anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client,
    ):
        stream = client.messages.create(model="any", max_tokens=300, messages=HELLO, stream=True)
        assert next(iter(stream)).type == "message_start"
        stream.close()
        live.at_rest()


def test_an_error_after_the_first_token_is_raised() -> None:
    def fail(row: object) -> str | None:
        return "not a number" if row.request.num_generated == 3 else None  # type: ignore[attr-defined]

    with (
        Live(row_error=fail) as live,
        anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="not a number"),
    ):
        list(client.messages.create(model="any", max_tokens=64, messages=HELLO, stream=True))
