"""Tokens for whoever wants to look at them: text into ids, ids into text, a template's text, counts.

What a prompt may cost bounds what each of these may: the same cap on characters, set by the largest context there is.
Called on worker threads. Knows no HTTP and no tokenizer: whatever satisfies `TextTools` will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.engine.errors import ContextLengthExceeded, InvalidParameter
from service.engine.prompt import ChatPrompt, Message, PromptEncoder, num_chars, refuse_unknown_ids
from service.engine.tools import Tool


class TextTools(PromptEncoder, Protocol):
    """A tokenizer as its users see it."""

    def encode_plain(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of a text, with or without what the tokenizer puts before one, special tokens parsed or not."""
        ...

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """What the chat template makes of a conversation. Raises RequestError."""
        ...

    def spell(self, token_id: int) -> bytes:
        """What a token is written as, control tokens included; b"" for an id without a token."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """The facts of tokenizer_config.json that clients ask for."""
        ...


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text to be cut into tokens."""

    text: str
    add_special: bool
    parse_special: bool


def tokenize(source: PlainText | ChatPrompt, n_ctx: int, tools: TextTools) -> list[int]:
    """The ids of a text, or of a conversation as its template writes it. Raises RequestError,
    ContextLengthExceeded for more text than `n_ctx` tokens can spell."""
    if isinstance(source, ChatPrompt):
        _refuse_too_long(num_chars(source), n_ctx, tools)
        return tools.encode_chat(source.messages, source.tools)
    _refuse_too_long(len(source.text), n_ctx, tools)
    return tools.encode_plain(source.text, add_special=source.add_special, parse_special=source.parse_special)


def detokenize(token_ids: Sequence[int], n_ctx: int, tools: TextTools) -> str:
    """The text of some tokens, control tokens included. Raises InvalidParameter."""
    if len(token_ids) > n_ctx:
        raise InvalidParameter(f"'tokens' has {len(token_ids)} ids, this server's limit is {n_ctx}", "tokens")
    refuse_unknown_ids(token_ids, tools.vocab_size, "tokens")
    return b"".join(map(tools.spell, token_ids)).decode("utf-8", errors="replace")


def render(prompt: ChatPrompt, n_ctx: int, tools: TextTools) -> str:
    """What the chat template makes of a conversation. Raises RequestError, ContextLengthExceeded."""
    _refuse_too_long(num_chars(prompt), n_ctx, tools)
    return tools.render_chat(prompt.messages, prompt.tools)


def _refuse_too_long(length: int, n_ctx: int, tools: TextTools) -> None:
    if length > n_ctx * tools.max_token_chars:
        raise ContextLengthExceeded(-(-length // tools.max_token_chars), n_ctx, at_least=True)
