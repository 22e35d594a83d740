"""What a client may ask to have continued, and how it becomes token ids that fit.

`encode_prompt` is the admission work: it runs on a worker thread, before a request exists. The cap on characters comes
before the tokenizer, because tokenizing is the cheapest attack there is (10 MB of spaces cost 13 s and 2 GB).

Knows no HTTP and no tokenizer: whatever satisfies `PromptEncoder` will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from service.engine.errors import ContextLengthExceeded, InvalidParameter
from service.engine.request import Limits
from service.engine.tools import Tool, ToolCall


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. tool_calls: of an assistant; tool_call_id: of a tool, which call it answers."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template, and functions it may call; special-token text in it is plain text."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue; special-token text in it is parsed as special."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue, taken as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MixedPrompt:
    """Texts and token ids, one after the other; what a text begins with (BOS) comes before a first text only."""

    parts: tuple[str | int, ...]


Prompt: TypeAlias = ChatPrompt | TextPrompt | TokenPrompt | MixedPrompt


class PromptEncoder(Protocol):
    """What admission needs of a tokenizer. Called from several threads at once."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_token_chars(self) -> int:
        """Characters of the longest token: n tokens never spell more than n times this many."""
        ...

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]: ...

    def encode_text(self, text: str, *, begins: bool = True) -> list[int]:
        """Special tokens parsed. With `begins` it is the beginning of a text, and starts as this model's texts do."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to a text; b"" for special tokens."""
        ...

    def control_name(self, token_id: int) -> str:
        """How a token that adds nothing to a text is written; "" for every other."""
        ...

    def spell(self, token_id: int) -> bytes:
        """The bytes of a token as it is written in a prompt: those of a control token too."""
        ...


def encode_prompt(prompt: Prompt, limits: Limits, encoder: PromptEncoder) -> tuple[int, ...]:
    """The prompt's token ids, at least one, inside the vocabulary, and few enough for `limits`.

    A prompt may fill n_ctx only if nothing is to be generated (max_tokens 0); otherwise one token of room must be left.
    Raises ContextLengthExceeded, InvalidParameter.
    """
    _refuse_too_many_chars(prompt, limits, encoder)
    token_ids = _encode(prompt, encoder)
    if not token_ids:
        raise InvalidParameter("the prompt is empty, and this model's tokenizer starts a text with no token", "prompt")
    room = limits.n_ctx if limits.max_tokens == 0 else limits.n_ctx - 1
    if len(token_ids) > room:
        raise ContextLengthExceeded(len(token_ids), limits.n_ctx)
    return token_ids


def encode_prediction(text: str, limits: Limits, encoder: PromptEncoder) -> tuple[int, ...]:
    """The token ids of what an output is expected to say. Raises InvalidParameter if it is longer than n_ctx."""
    num_tokens = -(-len(text) // encoder.max_token_chars)  # at least
    if num_tokens <= limits.n_ctx:
        token_ids = tuple(encoder.encode_text(text, begins=False))
        if len(token_ids) <= limits.n_ctx:
            return token_ids
        num_tokens = len(token_ids)
    message = f"'prediction' has at least {num_tokens} tokens, and this request's n_ctx is {limits.n_ctx}"
    raise InvalidParameter(message, "prediction")


def _refuse_too_many_chars(prompt: Prompt, limits: Limits, encoder: PromptEncoder) -> None:
    if isinstance(prompt, MixedPrompt) and len(prompt.parts) > limits.n_ctx:
        message = f"the prompt has {len(prompt.parts)} parts, and this request's n_ctx is {limits.n_ctx}"
        raise InvalidParameter(message, "prompt")
    length = num_chars(prompt)
    if length > limits.n_ctx * encoder.max_token_chars:
        raise ContextLengthExceeded(-(-length // encoder.max_token_chars), limits.n_ctx, at_least=True)


def num_chars(prompt: Prompt) -> int:
    """The characters that a template or a tokenizer will have to read; of tools too."""
    match prompt:
        case ChatPrompt(messages, tools):
            told = sum(len(tool.description) + len(tool.parameters) for tool in tools)
            calls = sum(len(call.arguments) for message in messages for call in message.tool_calls)
            return told + calls + sum(len(message.content) for message in messages)
        case TextPrompt(text):
            return len(text)
        case TokenPrompt():
            return 0
        case MixedPrompt(parts):
            return sum(len(part) for part in parts if isinstance(part, str))


def _encode(prompt: Prompt, encoder: PromptEncoder) -> tuple[int, ...]:
    match prompt:
        case ChatPrompt(messages, tools):
            return tuple(encoder.encode_chat(messages, tools))
        case TextPrompt(text):
            return tuple(encoder.encode_text(text))
        case TokenPrompt(token_ids):
            refuse_unknown_ids(token_ids, encoder.vocab_size, "prompt")
            return token_ids
        case MixedPrompt(parts):
            return tuple(_encode_parts(parts, encoder))


def _encode_parts(parts: Sequence[str | int], encoder: PromptEncoder) -> Iterator[int]:
    refuse_unknown_ids([part for part in parts if isinstance(part, int)], encoder.vocab_size, "prompt")
    for place, part in enumerate(parts):
        if isinstance(part, int):
            yield part
        else:
            yield from encoder.encode_text(part, begins=place == 0)


def refuse_unknown_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidParameter for an id outside the vocabulary."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidParameter(f"token id {token_id} is outside the vocabulary of {vocab_size}", param)
