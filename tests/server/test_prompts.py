"""From what a request says to the tokens that the model reads, on a running server: templates, control tokens, BOS."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.asking import ask
from tests.server.live import Live

TURN = "<|eot_id|>"


def ids_of_chat(model: Live, content: str, **fields: Any) -> list[int]:
    """The tokens of a chat of one message."""
    messages = [{"role": "user", "content": content}]
    answer = ask(model, "/v1/chat/completions", messages=messages, max_tokens=0, return_token_ids=True, **fields)
    return list(answer["prompt_token_ids"])


def ids_of_text(model: Live, prompt: Any) -> list[int]:
    answer = ask(model, "/v1/completions", prompt=prompt, max_tokens=0, return_token_ids=True)
    return list(answer["choices"][0]["prompt_token_ids"])


def tokenized(model: Live, **fields: Any) -> list[int]:
    return list(model.post("/tokenize", fields).json()["tokens"])


@pytest.fixture(scope="module")
def turn(model: Live) -> int:
    (token_id,) = tokenized(model, content=TURN)
    return token_id


@pytest.fixture(scope="module")
def bos(model: Live) -> int:
    info = model.http.get(model.url + "/tokenizer_info").json()
    (token_id,) = tokenized(model, content=info["bos_token"])
    return token_id


def test_the_text_of_a_control_token_is_one_in_a_completion_and_mere_text_in_a_chat(model: Live, turn: int) -> None:
    assert turn in ids_of_text(model, f"a{TURN}b")
    assert ids_of_chat(model, f"a{TURN}b").count(turn) == ids_of_chat(model, "ab").count(turn)
    assert len(ids_of_chat(model, f"a{TURN}b")) > len(ids_of_chat(model, "ab")) + 3


def test_a_text_begins_with_bos_once_and_token_ids_are_taken_as_they_are(model: Live, bos: int) -> None:
    assert ids_of_text(model, "ab")[0] == bos
    assert ids_of_text(model, "ab").count(bos) == 1
    assert ids_of_text(model, [70, 71]) == [70, 71]
    assert ids_of_text(model, ["ab", "ab"]) == ids_of_text(model, "ab")  # of the first of two prompts
    assert ids_of_chat(model, "ab").count(bos) <= 1
    assert ids_of_text(model, "") == [bos]


def test_text_and_ids_of_one_prompt_stand_one_after_the_other(model: Live, bos: int) -> None:
    text = tokenized(model, content="ab")
    assert ids_of_text(model, [[70, "ab", 71]]) == [70, *text, 71]
    assert ids_of_text(model, [["ab", 71]]) == [bos, *text, 71]


def test_a_chat_is_what_its_template_makes_of_it(model: Live) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    rendered = model.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert "Be brief." in rendered
    assert rendered.index("Be brief.") < rendered.index("Hello!")
    answer = ask(model, "/v1/chat/completions", messages=messages, max_tokens=0, return_token_ids=True)
    assert answer["prompt_token_ids"] == tokenized(model, messages=messages)
    developer = [{"role": "developer", "content": "Be brief."}, messages[1]]
    assert model.post("/apply-template", {"messages": developer}).json()["prompt"] == rendered


def test_tokens_and_text_lead_back_to_one_another(model: Live, bos: int) -> None:
    text = "Once upon a time, zwölf 🥊"
    answer = model.post("/tokenize", {"content": text, "with_pieces": True}).json()
    ids = [token["id"] for token in answer["tokens"]]
    assert answer["count"] == len(ids)
    assert answer["max_model_len"] == model.engine.info.n_ctx_max
    pieces = [
        piece.encode() if isinstance(piece := token["piece"], str) else bytes(piece) for token in answer["tokens"]
    ]
    assert b"".join(pieces).decode() == text
    back = model.post("/detokenize", {"tokens": ids}).json()
    assert back == {"content": text, "prompt": text}
    assert tokenized(model, prompt=text) == tokenized(model, content=text, add_special=True) == [bos, *ids]
    assert tokenized(model, prompt=text, add_special_tokens=False) == tokenized(model, content=text) == ids
    assert len(tokenized(model, content=TURN, parse_special=False)) > 1
