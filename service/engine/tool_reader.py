"""An answer that may hold tool calls, read piece by piece as it is written: what is text, what is a call's name, and
what are pieces of its arguments.

The spelling is that of `tools.py`, and the grammar has seen to it. An answer that was cut anywhere (its length, a stop
string) is read up to there. Knows no requests and no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from service.engine.tools import BETWEEN, HEAD, OPENING


@dataclass(frozen=True, slots=True)
class Words:
    """Plain text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The next call, numbered from 0, is of this function."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of call `index`: pieces of one JSON object."""

    index: int
    text: str


Piece: TypeAlias = Words | CallBegun | Arguments


class ToolReader:
    """num_calls: calls begun so far."""

    __slots__ = ("_depth", "_held", "_is_escaped", "_is_quoted", "_place", "num_calls")

    def __init__(self) -> None:
        self.num_calls = 0
        self._place: Literal["words", "name", "arguments", "tail"] = "words"
        self._held = ""
        self._depth = 0
        self._is_quoted = self._is_escaped = False

    def push(self, text: str, *, final: bool) -> Iterator[Piece]:
        """The pieces that are certain after `text`; `final`: no more comes."""
        self._held += text
        while piece := self._read():
            yield piece
        if final and self._place == "words" and self._held:
            yield Words(self._held)
            self._held = ""

    def _read(self) -> Piece | None:
        """The next piece of what is held, if there is one."""
        match self._place:
            case "words":
                return self._read_words()
            case "name":
                return self._read_name()
            case "arguments":
                return self._read_arguments()
            case "tail":
                _, opening, after = self._held.partition(OPENING)
                if not opening:
                    return None
                self._place, self._held = "name", after
                return self._read_name()

    def _read_words(self) -> Piece | None:
        before, opening, after = self._held.partition(OPENING)
        if opening:
            self._place, self._held = "name", after
            return Words(before) if before else self._read_name()
        num_open = _num_open(self._held)
        ready, self._held = self._held[: len(self._held) - num_open], self._held[len(self._held) - num_open :]
        return Words(ready) if ready else None

    def _read_name(self) -> Piece | None:
        name, between, after = self._held.removeprefix(HEAD).partition(BETWEEN)
        if not between:
            return None
        self._place, self._held = "arguments", after
        self.num_calls += 1
        return CallBegun(self.num_calls - 1, name)

    def _read_arguments(self) -> Piece | None:
        """Up to the brace that closes the object."""
        for place, char in enumerate(self._held):
            if self._closes(char):
                text, self._held = self._held[: place + 1], self._held[place + 1 :]
                self._place = "tail"
                return Arguments(self.num_calls - 1, text)
        text, self._held = self._held, ""
        return Arguments(self.num_calls - 1, text) if text else None

    def _closes(self, char: str) -> bool:
        """Whether this next character of the arguments is their last."""
        if self._is_quoted:
            self._is_quoted = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
        elif char == '"':
            self._is_quoted = True
        elif char in "{}":
            self._depth += 1 if char == "{" else -1
            return self._depth == 0
        return False


def _num_open(text: str) -> int:
    """How many characters at the end of the text may be the beginning of a call."""
    return next((num for num in range(min(len(OPENING) - 1, len(text)), 0, -1) if text.endswith(OPENING[:num])), 0)
