"""What a request will probably say next, guessed from what is in it already: prompt lookup.

Where its last tokens have occurred before, what followed them then is the guess: an answer that quotes, corrects or
goes on with its prompt says long runs of it again, and so does one whose client sent what it expects. A guess is only
ever a guess; whether it is right is found out by computing it. Source: Saxena 2023, "Prompt Lookup Decoding".

Knows no model, no sampler and no time.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3
"""Tokens that must have occurred together: of two, every other phrase of a story is a quotation."""
BITS = 21
BREAK = (1 << BITS) - 1
"""Stands before and after the client's prediction: the id of no token."""
LAST_NGRAM = (1 << BITS * NGRAM) - 1
FIRST_HIT_RATE = 0.5
MEMORY = 1 / 8
"""Weight of the newest guess in `hit_rate`."""


class PromptLookup:
    """The guesses of one request: `follow` it, then `guess`.

    hit_rate: how often the guess of the next token was right lately, whether or not it was made use of.
    """

    __slots__ = ("_after", "_next", "_ngram", "_num_before", "_run", "_tokens", "hit_rate")

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        self.hit_rate = FIRST_HIT_RATE
        self._tokens: list[int] = [BREAK]  # and what follows the first one is no guess
        self._after: dict[int, int] = {}  # of every n-gram, where in _tokens what followed it last begins
        self._ngram = LAST_NGRAM
        self._next = 0  # where in _tokens the guess begins
        self._run = 0  # guesses that were right one after the other, up to now
        for token_id in prediction:
            self._append(token_id)
        if prediction:
            self._append(BREAK)
        self._num_before = len(self._tokens)

    @property
    def has_guess(self) -> bool:
        return self._tokens[self._next] != BREAK

    def follow(self, token_ids: Sequence[int], num_prompt: int) -> None:
        """Take in what came since the last call; `token_ids` are all of the request, num_prompt of the prompt first."""
        tokens, place = self._tokens, len(self._tokens) - self._num_before
        while place < num_prompt:
            # an answer begins as its prediction does, where there is one
            found = self._append(token_ids[place])
            self._next = found if self._num_before == 1 else 1
            place += 1
        for token_id in token_ids[place:]:
            guess = tokens[self._next]
            found = self._append(token_id)
            if guess == BREAK:
                self._next, self._run = found, 0
            elif guess == token_id:
                self._next, self._run = self._next + 1, self._run + 1
                self.hit_rate += (1.0 - self.hit_rate) * MEMORY
            else:
                # a run of some length is taken to go on behind one other token
                self._next, self._run = found or (self._next + 1 if self._run >= NGRAM else 0), 0
                self.hit_rate -= self.hit_rate * MEMORY

    def guess(self, most: int) -> tuple[int, ...]:
        """The next tokens, `most` at most. A run that reaches the newest token goes on with itself."""
        run = self._tokens[self._next : self._next + most]
        if BREAK in run:
            return tuple(run[: run.index(BREAK)])
        return tuple(run[i % len(run)] for i in range(most))

    def _append(self, token_id: int) -> int:
        """One token more; where what followed its n-gram the last time begins, 0 if it is new."""
        self._tokens.append(token_id)
        self._ngram = (self._ngram << BITS | token_id) & LAST_NGRAM
        found = self._after.get(self._ngram, 0)
        self._after[self._ngram] = len(self._tokens)
        return found
