"""What a request will probably say next: what its grammar leaves it, or else what prompt lookup finds.

A grammar often leaves one text to go on with (the name of a key, the end of an object), and a model mostly spells that
as the tokenizer does. How often either was right lately is counted whether or not it was made use of.

Knows no model, no sampler and no time.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.engine.grammar import Matcher
from service.engine.lookup import MEMORY, PromptLookup

FIRST_SPELLING_RATE = 0.9


class Guesser:
    """The guesses of one request: `look` at it, then `guess`. prediction: the tokens its client expects it to say."""

    __slots__ = ("_forced", "_forced_at", "_lookup", "_prediction", "spelling_rate")

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        self.spelling_rate = FIRST_SPELLING_RATE
        self._prediction = prediction
        self._lookup: PromptLookup | None = None  # made by the engine's thread: requests are made on the event loop
        self._forced: Sequence[int] = ()
        self._forced_at = 0

    def look(self, token_ids: Sequence[int], num_prompt: int, matcher: Matcher | None) -> float | None:
        """The chance of a guess of the next token; None without one. `token_ids` are all there are by now, num_prompt
        of the prompt first."""
        for expected, token_id in zip(self._forced, token_ids[self._forced_at :], strict=False):
            self.spelling_rate += ((expected == token_id) - self.spelling_rate) * MEMORY
            if expected != token_id:
                break
        forced = () if matcher is None else matcher.forced()
        self._forced, self._forced_at = forced or (), len(token_ids)
        if self._lookup is None:
            self._lookup = PromptLookup(self._prediction)
        self._lookup.follow(token_ids, num_prompt)
        if forced is None:
            return None
        if self._forced:
            return self.spelling_rate
        return self._lookup.hit_rate if self._lookup.has_guess else None

    def guess(self, most: int) -> tuple[int, ...]:
        """The next tokens, `most` at most."""
        if self._forced:
            return tuple(self._forced[:most])
        return self._lookup.guess(most) if self._lookup is not None else ()
