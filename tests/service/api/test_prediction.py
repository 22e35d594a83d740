"""What a client expects an answer to say: read, counted, refused where it cannot be made use of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.api.asgi import CHAT, Client, error_of

TEXT = "the quick brown fox jumps over the lazy dog"
ECHO = {"messages": [{"role": "user", "content": TEXT}]}
DETAILS = {"accepted_prediction_tokens", "rejected_prediction_tokens"}


def predicted(content: object, **fields: object) -> dict[str, Any]:
    return {**ECHO, "prediction": {"type": "content", "content": content}, **fields}


@pytest.fixture(scope="module")
def guessing() -> Iterator[Client]:
    """Over an engine that repeats what it is told, and guesses. Its clock stands still, so a guess costs nothing."""
    with Client(draft_max=8, n_ctx=200, clock=lambda: 0.0) as client:
        yield client


@pytest.mark.parametrize("content", [TEXT, [{"type": "text", "text": TEXT[:9]}, {"type": "text", "text": TEXT[9:]}]])
def test_a_right_prediction_is_accepted_and_changes_no_text(guessing: Client, content: object) -> None:
    answer = guessing.post("/v1/chat/completions", predicted(content)).json()
    assert answer["choices"] == guessing.post("/v1/chat/completions", ECHO).json()["choices"]
    details = answer["usage"]["completion_tokens_details"]
    assert details.keys() == DETAILS
    assert details["accepted_prediction_tokens"] > len(TEXT) / 2
    timings = answer["timings"]
    assert timings["draft_n_accepted"] == details["accepted_prediction_tokens"]
    assert timings["draft_n"] == sum(details.values())


def test_a_wrong_one_is_rejected_and_changes_no_text_either(guessing: Client) -> None:
    answer = guessing.post("/v1/chat/completions", predicted(TEXT.replace("o", "0").replace("e", "3"))).json()
    assert answer["choices"] == guessing.post("/v1/chat/completions", ECHO).json()["choices"]
    assert answer["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] > 0


def test_a_stream_tells_of_it_in_its_usage_and_sends_the_same_text(guessing: Client) -> None:
    body = predicted(TEXT, stream_options={"include_usage": True})
    _, events = guessing.stream("/v1/chat/completions", body)
    assert events[-1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(pieces) == TEXT
    assert len(pieces) < len(TEXT)  # several tokens in a chunk


def test_of_two_choices_the_guesses_are_counted_together(guessing: Client) -> None:
    answer = guessing.post("/v1/chat/completions", predicted(TEXT, n=2)).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [TEXT] * 2
    assert sum(answer["usage"]["completion_tokens_details"].values()) > 0


def test_without_a_prediction_usage_says_nothing_of_guesses(guessing: Client) -> None:
    answer = guessing.post("/v1/chat/completions", {**CHAT, "prediction": None}).json()
    assert "completion_tokens_details" not in answer["usage"]
    assert "draft_n" not in Client.post(guessing, "/v1/chat/completions", {**ECHO, "max_tokens": 1}).json()["timings"]


@pytest.mark.parametrize(
    "value", [TEXT, {}, {"type": "content"}, {"type": "other", "content": TEXT}, {"type": "content", "content": 3}]
)
def test_what_is_no_prediction_is_refused(client: Client, value: object) -> None:
    error = error_of(client.post("/v1/chat/completions", {**CHAT, "prediction": value}), 400, "invalid_parameter")
    assert error["param"] == "prediction"


@pytest.mark.parametrize("num_chars", [129, 5000])
def test_one_longer_than_the_context_is_refused(client: Client, num_chars: int) -> None:
    body = {**CHAT, "prediction": {"type": "content", "content": "é" * (num_chars // 2) + "x" * (num_chars % 2)}}
    error = error_of(client.post("/v1/chat/completions", body), 400, "invalid_parameter")
    assert error["param"] == "prediction"
    assert "128" in error["message"]
    fits = {**CHAT, "prediction": {"type": "content", "content": "x" * 128}}
    assert client.post("/v1/chat/completions", fits).status_code == 200


def test_a_server_that_does_not_guess_says_so() -> None:
    with Client({"draft_max": 0}) as client:
        error = error_of(client.post("/v1/chat/completions", predicted(TEXT)), 400, "not_supported")
        assert error["param"] == "prediction"
        assert client.get("/slots").json()[0]["speculative"] is False


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_texts_have_no_prediction(client: Client, path: str) -> None:
    body = {"prompt": "a", "prediction": {"type": "content", "content": "b"}}
    assert error_of(client.post(path, body), 400, "not_supported")["param"] == "prediction"
