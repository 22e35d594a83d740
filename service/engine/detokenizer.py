"""Token bytes -> text that may be shown: never half a character, never a stop string or what may become one.

Invalid bytes become U+FFFD exactly where Python's `bytes.decode("utf-8", "replace")` of the whole would put them. Stop
strings are looked for character by character, so what is found does not depend on where tokens begin and end: the stop
string that is complete first ends the text, and of those complete at the same character, the longest. Matching is
Knuth-Morris-Pratt, one state per stop string: the state is the length of text that must be held back.

Knows no token ids and no requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """The text of one generation. `stop`: strings that end it; empty ones are ignored. include_stop: the one that is
    met is the end of the text, instead of what comes after it, and nothing is ever held back.

    stopping_word: the stop string that was met, "" until then; afterwards no more text comes.
    """

    __slots__ = ("_decoder", "_held", "_include_stop", "_patterns", "stopping_word")

    def __init__(self, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._patterns = [_Pattern(word) for word in stop if word]
        self._held = ""
        self._include_stop = include_stop
        self.stopping_word = ""

    def push(self, data: bytes, *, may_stop: bool = True) -> str:
        """Take the bytes of the next token; return the text that is certain now.

        may_stop: else no stop string is looked for in it. Such bytes come before all others.
        """
        text = self._decoder.decode(data)
        return self._pass_on(text) if may_stop else text

    def flush(self) -> str:
        """The generation ends here: return what was held back; half a character becomes U+FFFD."""
        text = self._pass_on(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _pass_on(self, text: str) -> str:
        """Of the held text and `text`: what lies before a stop string, or can no longer be part of one."""
        if self.stopping_word:
            return ""
        pending = self._held + text
        if not self._patterns:
            return pending
        for i, char in enumerate(text, start=len(self._held)):
            word = self._advance(char)
            if word:
                self.stopping_word, self._held = word, ""
                return pending[: i + 1 - (0 if self._include_stop else len(word))]
        if self._include_stop:
            return pending
        num_ready = len(pending) - max(pattern.num_matched for pattern in self._patterns)
        self._held = pending[num_ready:]
        return pending[:num_ready]

    def _advance(self, char: str) -> str:
        """Feed one character to every pattern; the longest stop string it completes, or ""."""
        found = ""
        for pattern in self._patterns:
            if pattern.advance(char) and len(pattern.word) > len(found):
                found = pattern.word
        return found


class _Pattern:
    """One stop string and how many of its characters the text so far ends with."""

    __slots__ = ("_fallback", "num_matched", "word")

    def __init__(self, word: str) -> None:
        self.word = word
        self.num_matched = 0
        self._fallback = _prefix_function(word)

    def advance(self, char: str) -> bool:
        """True once the whole word is matched."""
        matched = self.num_matched
        while matched and self.word[matched] != char:
            matched = self._fallback[matched - 1]
        if self.word[matched] == char:
            matched += 1
        self.num_matched = matched
        return matched == len(self.word)


def _prefix_function(word: str) -> list[int]:
    """For each i, the length of the longest proper prefix of word[: i + 1] that is also its suffix."""
    lengths = [0] * len(word)
    for i in range(1, len(word)):
        length = lengths[i - 1]
        while length and word[i] != word[length]:
            length = lengths[length - 1]
        lengths[i] = length + (word[i] == word[length])
    return lengths
