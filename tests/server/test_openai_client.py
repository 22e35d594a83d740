"""OpenAI's own Python client against a running server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.server.live import Live

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, zwölf 🥊!"}]


@pytest.fixture(params=["", "/v1"])
def client(live: Live, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + request.param, api_key="none", max_retries=0) as made:
        yield made


def test_a_plain_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=MESSAGES, temperature=0.5, seed=1)
    assert answer.choices[0].message.content == "Hello, zwölf 🥊!"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_with_usage(client: openai.OpenAI) -> None:
    options: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="any", messages=MESSAGES, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello, zwölf 🥊!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None


def test_a_predicted_output() -> None:
    text = "def greet(name):\n    return 'Hello, ' + name\n" * 3
    with (
        Live(draft_max=8, n_ctx=400, clock=lambda: 0.0) as live,
        openai.OpenAI(base_url=live.url, api_key="none") as client,
    ):
        answer = client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": text.replace("Hello", "Hallo")}],
            prediction={"type": "content", "content": text},
        )
    assert answer.choices[0].message.content == text.replace("Hello", "Hallo")
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens is not None
    assert details.rejected_prediction_tokens is not None
    assert details.accepted_prediction_tokens > details.rejected_prediction_tokens > 0


def test_our_own_fields_travel_in_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, extra_body={"top_k": 5, "n_predict": 3, "repeat_penalty": 1.2}
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hel", "length")


def test_a_refusal_is_an_exception_with_code_and_param(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=MESSAGES, temperature=3)
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "temperature")


def test_models_and_text_completions(live: Live) -> None:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").id == "fake"
        assert client.completions.create(model="any", prompt="abc").choices[0].text == "abc"
        pieces = client.completions.create(model="any", prompt="abc", stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "abc"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
