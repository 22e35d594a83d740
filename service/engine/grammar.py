"""What an output must obey (Grammar), and what the engine asks of it token by token (Matcher).

Knows no grammar library: `grammar_compiler.py` makes matchers out of grammars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

JSON_STYLE = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
"""How JSON is written (llguidance's options): one white space between parts, since a model that may write any may write
it for ever; and a schema is enforced whole or refused."""

GrammarKind: TypeAlias = Literal["json_schema", "regex", "grammar", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A JSON schema, a regular expression, or a grammar in Lark's or llama.cpp's (GBNF) notation; `lark` is Lark's for
    certain.

    param: the field of the request it came from, which a refusal names.
    """

    kind: GrammarKind
    text: str
    param: str


class MatcherError(Exception):
    """A grammar came to its limits while it ran; `str()` is fit to be shown to a client."""


class Matcher(Protocol):
    """How far one generation has come in its grammar. Moved on by `advance` alone: looking changes nothing, neither
    here nor `ahead`."""

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [V], at least one: the ids that end a generation where the text may end,
        nothing but them where it must. Raises MatcherError, and then always does."""
        ...

    def forced(self) -> Sequence[int] | None:
        """If the grammar leaves one text to go on with, that text as the tokenizer spells it; a mask may allow other
        spellings. Empty where there is a choice; None where looking ahead is not worth it, or the grammar has failed.
        """
        ...

    def ahead(self, token_ids: Sequence[int]) -> Matcher:
        """Where it would be after these tokens. If they are not allowed, its mask raises. What it looks at counts for
        the limits of the grammar."""
        ...

    def advance(self, token_ids: Sequence[int]) -> None:
        """The tokens, each one that the mask allows after those before it, are part of the text now."""
        ...
