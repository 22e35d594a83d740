"""/tokenize, /detokenize, /apply-template and /tokenizer_info, over a tokenizer of one token a byte."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.api.asgi import CHAT, Client, error_of, loading_client
from tests.service.engine.fakes import BOS, EOS, VOCAB_SIZE


@pytest.fixture(params=["", "/v1"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "ab"}, [97, 98]),
        ({"content": "ab", "add_special": True}, [BOS, 97, 98]),
        ({"content": "a<eos>"}, [97, EOS]),
        ({"content": "a<eos>", "parse_special": False}, [97, *b"<eos>"]),
        ({"content": ""}, []),
        ({"prompt": "ab"}, [BOS, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False, "model": "any"}, [97, 98]),
    ],
)
def test_text_becomes_token_ids_in_both_spellings(
    client: Client, prefix: str, body: dict[str, Any], tokens: list[int]
) -> None:
    answer = client.post(prefix + "/tokenize", body).json()
    assert answer == {"tokens": tokens, "count": len(tokens), "max_model_len": 512}


def test_messages_are_counted_as_a_chat_would_be(client: Client) -> None:
    answer = client.post("/tokenize", CHAT).json()
    assert answer["count"] == client.post("/chat/completions", CHAT).json()["usage"]["prompt_tokens"]


def test_pieces_are_text_or_bytes_where_a_token_is_no_whole_character(client: Client) -> None:
    body = {"content": "a<eos>ö", "with_pieces": True}
    assert client.post("/tokenize", body).json()["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": EOS, "piece": "<eos>"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xB6, "piece": [0xB6]},
    ]


def test_token_ids_become_text_again_with_their_control_tokens(client: Client, prefix: str) -> None:
    answer = client.post(prefix + "/detokenize", {"tokens": [BOS, *"zwölf".encode(), 0xC3]}).json()
    assert answer == {"content": "<bos>zwölf\ufffd", "prompt": "<bos>zwölf\ufffd"}


def test_the_template_is_applied_and_nothing_runs(client: Client, prefix: str) -> None:
    answer = client.post(prefix + "/apply-template", CHAT).json()
    assert answer == {"prompt": "<user>hello there<assistant>"}


def test_the_tokenizers_facts_are_told(client: Client, prefix: str) -> None:
    facts = client.get(prefix + "/tokenizer_info").json()
    assert (facts["eos_token"], facts["chat_template"], facts["vocab_size"]) == ("<eos>", "a template", VOCAB_SIZE)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, "with_pieces"),
        ("/tokenize", {"content": "\ud800"}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
        ("/detokenize", {"tokens": [1] * 513}, "tokens"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": [{"role": "nobody", "content": ""}]}, "messages"),
    ],
)
def test_what_is_wrong_is_named(client: Client, path: str, body: dict[str, Any], param: str) -> None:
    assert error_of(client.post(path, body), 400, "invalid_parameter")["param"] == param


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "a" * 513}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * 513}]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "a" * 513}]}),
    ],
)
def test_more_text_than_any_context_holds_is_refused_before_it_is_cut(
    client: Client, path: str, body: dict[str, Any]
) -> None:
    assert error_of(client.post(path, body), 400, "context_length_exceeded")["n_ctx"] == 512


def test_there_are_no_tokens_before_there_is_a_model() -> None:
    with loading_client() as client:
        error_of(client.post("/tokenize", {"content": "a"}), 503, "model_loading")
        error_of(client.get("/tokenizer_info"), 503, "model_loading")
