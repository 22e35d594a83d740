"""Where a text was broken last: the sequence breakers of DRY, found in what the tokens spell.

A repeat does not reach back over a breaker. Breakers are looked for in bytes, so that one that is spread over several
tokens, or is only a part of one, is found too. Knows no requests and no penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Breakers:
    """The breakers of one request. `spell`: the bytes of a token, those of a control token as it is written."""

    __slots__ = ("_after_break", "_num_read", "_spell", "_tail", "_words")

    def __init__(self, words: Sequence[str], spell: Callable[[int], bytes]) -> None:
        self._words = [word.encode() for word in words if word]
        self._spell = spell
        self._tail = b""  # of what was read, as much as may be the beginning of a breaker
        self._num_read = 0
        self._after_break = 0

    def num_since(self, token_ids: Sequence[int]) -> int:
        """How many tokens stand behind the last one that a breaker ends in, all of them if there is none.

        Reads on from where it stopped the last time: a request's tokens only ever grow.
        """
        for place in range(self._num_read, len(token_ids)):
            piece = self._spell(token_ids[place])
            text = self._tail + piece
            if any(text.find(word, max(0, len(self._tail) - len(word) + 1)) >= 0 for word in self._words):
                self._after_break = place + 1
            longest = max(map(len, self._words), default=1)
            self._tail = text[len(text) - min(len(text), longest - 1) :]
        self._num_read = len(token_ids)
        return len(token_ids) - self._after_break

    def within(self, token_id: int) -> bool:
        """The token has a breaker in it."""
        spelling = self._spell(token_id)
        return any(word in spelling for word in self._words)
