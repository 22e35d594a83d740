"""OpenAI's own client on /v1/responses, plain and streamed."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.server.live import Live
from tests.service.engine.fakes import endless


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="any", input="Hello, zwölf 🥊!", instructions="be brief", store=False)
    assert answer.output_text == "Hello, zwölf 🥊!"
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens == len("Hello, zwölf 🥊!".encode()) + 1


def test_a_conversation_goes_on_with_what_was_answered(client: openai.OpenAI) -> None:
    first = client.responses.create(model="any", input="one")
    again = client.responses.create(
        model="any", input=[{"role": "user", "content": "one"}, *first.output, {"role": "user", "content": "two"}]
    )
    assert again.output_text == "two"


def test_a_stream_of_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="any", input="Hello!", max_output_tokens=4, stream=True))
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hell"
    assert events[-1].type == "response.incomplete"


def test_the_clients_own_reader_of_streams_puts_the_response_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model="any", input="Hello!") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "Hello!"


def test_a_refusal_has_code_and_param(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="any", input="Hello!", previous_response_id="resp-1")
    assert (caught.value.code, caught.value.param) == ("not_supported", "previous_response_id")


def test_a_stream_that_is_left_ends_its_generation() -> None:
    with (
        Live(choose=endless, step_s=0.002, n_ctx=400) as live,
        openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.responses.create(model="any", input="Hello!", stream=True)
        assert next(iter(stream)).type == "response.created"
        stream.close()
        live.at_rest()


def test_an_error_after_the_first_token_is_raised() -> None:
    def fail(row: object) -> str | None:
        return "not a number" if row.request.num_generated == 3 else None  # type: ignore[attr-defined]

    with (
        Live(row_error=fail) as live,
        openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="not a number"),
    ):
        list(client.responses.create(model="any", input="Hello!", stream=True))
