"""Tokens and their logprobs as clients read them: OpenAI's chat list, its legacy arrays, llama.cpp's, vLLM's.

A token's `logprob` and those of the likeliest beside it are of the model's own distribution, before penalties and cuts.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from service.engine.prompt import PromptEncoder
from service.engine.request import Delta, Logprobs

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text: the character it begins at, and what is told of it, if anything."""

    id: int
    start: int
    logprobs: Logprobs | None


class Track:
    """Which tokens the text sent so far has come to: a token goes with the text it helps to spell, never before it.

    Text is held back inside a character and where a stop string may begin, and so are the tokens here. Those of a stop
    string that was cut off are not told at all. Unless it `is_wanted`, it takes no notice and tells of none.
    """

    def __init__(self, tokenizer: PromptEncoder, *, is_wanted: bool, first_char: int = 0) -> None:
        self._tokenizer = tokenizer
        self._is_wanted = is_wanted
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_spelled = self._num_shown = first_char
        self._held: deque[tuple[Token, int]] = deque()  # with the number of characters that must be shown first

    def take(self, delta: Delta) -> list[Token]:
        """The tokens that belong to the delta's text; at the end, all that are left."""
        if not self._is_wanted:
            return []
        for token_id, logprobs in zip_longest(delta.token_ids, delta.logprobs):
            token = Token(token_id, self._num_spelled, logprobs)
            self._num_spelled += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
            is_inside_character = bool(self._decoder.getstate()[0])
            self._held.append((token, self._num_spelled + is_inside_character))
        self._num_shown += len(delta.text)
        if delta.finish is not None:
            rest = [token for token, _ in self._held]
            self._held.clear()
            return [token for token in rest if delta.stop_kind != "word" or token.start < self._num_shown]
        ready = []
        while delta.text and self._held and self._held[0][1] <= self._num_shown:
            ready.append(self._held.popleft()[0])
        return ready


def prompt_tokens(
    token_ids: Sequence[int], logprobs: Sequence[Logprobs], text: str, tokenizer: PromptEncoder
) -> Iterator[Token]:
    """A prompt's tokens where they stand in `text`; of the first nothing can be told."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start = 0
    for token_id, told in zip_longest(token_ids, [None, *logprobs]):
        yield Token(token_id, min(start, len(text)), told)
        start += len(decoder.decode(tokenizer.token_bytes(token_id)))
        name = tokenizer.control_name(token_id)
        if name and text.startswith(name, start):  # the client wrote it; BOS before its text it did not write
            start += len(name)


def text_of(token_ids: Sequence[int], tokenizer: PromptEncoder) -> str:
    """What the tokens spell; U+FFFD where they are no characters."""
    return b"".join(map(tokenizer.token_bytes, token_ids)).decode("utf-8", "replace")


def spell(token_id: int, tokenizer: PromptEncoder) -> tuple[str, bytes]:
    """A token as text and as bytes; control tokens by their names."""
    data = tokenizer.token_bytes(token_id) or tokenizer.control_name(token_id).encode()
    return data.decode("utf-8", "replace"), data


def entries(tokens: Sequence[Token], tokenizer: PromptEncoder) -> list[Event]:
    """llama.cpp's entries, which are OpenAI's of a chat and the ids."""
    return [
        {
            **_entry(told.token_id, told.logprob, tokenizer),
            "top_logprobs": [_entry(token_id, logprob, tokenizer) for token_id, logprob in told.top],
        }
        for told in (token.logprobs for token in tokens)
        if told is not None
    ]


def _entry(token_id: int, logprob: float, tokenizer: PromptEncoder) -> Event:
    text, data = spell(token_id, tokenizer)
    return {"id": token_id, "token": text, "bytes": list(data), "logprob": logprob}


def legacy(tokens: Sequence[Token], tokenizer: PromptEncoder, num_top: int) -> Event:
    """The four arrays of /v1/completions, with `num_top` of the likeliest tokens."""
    told = [token.logprobs for token in tokens]
    return {
        "tokens": [_legacy_name(token.id, tokenizer) for token in tokens],
        "token_logprobs": [None if one is None else one.logprob for one in told],
        "top_logprobs": [None if one is None else _legacy_top(one, tokenizer, num_top) for one in told],
        "text_offset": [token.start for token in tokens],
    }


def _legacy_top(told: Logprobs, tokenizer: PromptEncoder, num_top: int) -> Event:
    """By name, likeliest first; the token itself is always there."""
    pairs = dict([*told.top[:num_top], (told.token_id, told.logprob)])
    return {_legacy_name(token_id, tokenizer): logprob for token_id, logprob in pairs.items()}


def _legacy_name(token_id: int, tokenizer: PromptEncoder) -> str:
    """OpenAI's spelling of tokens that are no text by themselves is `bytes:\\xe2\\x9c`: each has a name of its own."""
    text, data = spell(token_id, tokenizer)
    return text if text.encode() == data else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def by_id(logprobs: Sequence[Logprobs], tokenizer: PromptEncoder, num_top: int) -> list[Event | None]:
    """vLLM's `prompt_logprobs`: one object for each token of the prompt, by id; null for the first."""
    return [None, *(_by_id(told, tokenizer, num_top) for told in logprobs)]


def _by_id(told: Logprobs, tokenizer: PromptEncoder, num_top: int) -> Event:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(told.top[:num_top], start=1)]
    return {
        str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": spell(token_id, tokenizer)[0]}
        for token_id, logprob, rank in [*ranked, (told.token_id, told.logprob, told.rank)]
    }
