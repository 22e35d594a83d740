from __future__ import annotations

import pytest

from service.engine.errors import ContextLengthExceeded, InvalidParameter
from service.engine.prompt import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt, encode_prompt
from service.engine.request import Limits
from tests.service.engine.fakes import BOS, VOCAB_SIZE, FakeTokenizer


def limits(n_ctx: int, max_tokens: int = -1) -> Limits:
    return Limits(n_ctx=n_ctx, n_batch=8, max_tokens=max_tokens)


class Untouchable(FakeTokenizer):
    def encode_text(self, text: str) -> list[int]:
        raise AssertionError("tokenized before its length was looked at")

    def encode_chat(self, messages: object, tools: object) -> list[int]:
        raise AssertionError("rendered before its length was looked at")


class Startless(FakeTokenizer):
    def encode_text(self, text: str) -> list[int]:
        return list(text.encode())


def test_text_chat_and_tokens_become_ids() -> None:
    assert encode_prompt(TextPrompt("ab"), limits(8), FakeTokenizer()) == (BOS, 97, 98)
    assert encode_prompt(TokenPrompt((5, 6)), limits(8), FakeTokenizer()) == (5, 6)
    assert len(encode_prompt(ChatPrompt((Message("user", "ab"),)), limits(64), FakeTokenizer())) == 21


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "fits"), [(7, -1, True), (8, -1, False), (8, 0, True), (9, 0, False)]
)
def test_a_prompt_may_fill_the_context_only_if_nothing_is_generated(
    num_tokens: int, max_tokens: int, fits: bool
) -> None:
    prompt = TokenPrompt((1,) * num_tokens)
    if fits:
        assert len(encode_prompt(prompt, limits(8, max_tokens), FakeTokenizer())) == num_tokens
    else:
        with pytest.raises(ContextLengthExceeded) as caught:
            encode_prompt(prompt, limits(8, max_tokens), FakeTokenizer())
        assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (num_tokens, 8)


@pytest.mark.parametrize("prompt", [TextPrompt("x" * 1000), ChatPrompt((Message("user", "x" * 600),) * 2)])
def test_a_prompt_too_long_for_any_tokenization_is_refused_before_tokenizing(prompt: Prompt) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"at least 1[02]00 tokens"):
        encode_prompt(prompt, limits(64), Untouchable())


def test_an_empty_text_is_its_start_token_or_refused_where_there_is_none() -> None:
    assert encode_prompt(TextPrompt(""), limits(8), FakeTokenizer()) == (BOS,)
    for prompt in (TextPrompt(""), TokenPrompt(())):
        with pytest.raises(InvalidParameter, match="empty"):
            encode_prompt(prompt, limits(8), Startless())


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 1 << 70])
def test_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    with pytest.raises(InvalidParameter, match="outside the vocabulary"):
        encode_prompt(TokenPrompt((1, token_id)), limits(8), FakeTokenizer())
