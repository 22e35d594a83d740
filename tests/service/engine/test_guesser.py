from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.guesser import FIRST_SPELLING_RATE, Guesser
from service.engine.lookup import FIRST_HIT_RATE

PROMPT = [1, 2, 3, 4, 5, 1, 2, 3]  # after which 4 is looked up


class Leaves:
    """A grammar that leaves these tokens, whatever comes."""

    def __init__(self, *forced: int, is_slow: bool = False) -> None:
        self._forced = None if is_slow else forced

    def mask(self) -> NDArray[np.bool_]:
        raise NotImplementedError

    def forced(self) -> Sequence[int] | None:
        return self._forced

    def ahead(self, token_ids: Sequence[int]) -> Leaves:
        raise NotImplementedError

    def advance(self, token_ids: Sequence[int]) -> None:
        raise NotImplementedError


def test_without_a_grammar_the_lookup_guesses() -> None:
    made = Guesser()
    assert made.look(PROMPT, 8, None) == FIRST_HIT_RATE
    assert made.guess(2) == (4, 5)
    assert made.look([*PROMPT, 7], 8, None) is None
    assert made.guess(2) == ()


def test_what_a_grammar_leaves_comes_first_and_where_it_leaves_a_choice_the_lookup() -> None:
    made = Guesser()
    assert made.look(PROMPT, 8, Leaves(30, 31, 32)) == FIRST_SPELLING_RATE
    assert made.guess(2) == (30, 31)
    assert made.look(PROMPT, 8, Leaves()) == FIRST_HIT_RATE
    assert made.guess(2) == (4, 5)


def test_nothing_is_guessed_where_the_grammar_is_slow() -> None:
    made = Guesser()
    assert made.look(PROMPT, 8, Leaves(is_slow=True)) is None
    assert made.look(PROMPT, 8, Leaves()) == FIRST_HIT_RATE


def test_a_prediction_is_where_the_answer_begins() -> None:
    made = Guesser([9, 8, 7])
    made.look([1, 2], 2, None)
    assert made.guess(5) == (9, 8, 7)


@pytest.mark.parametrize(("said", "rates"), [([30, 31], (0.9, 1.0)), ([30, 99], (0.79, 0.9)), ([99, 31], (0.7, 0.79))])
def test_spellings_count_up_to_the_first_that_is_another(said: list[int], rates: tuple[float, float]) -> None:
    made = Guesser()
    made.look(PROMPT, 8, Leaves(30, 31))
    made.look([*PROMPT, *said], 8, Leaves())
    assert rates[0] < made.spelling_rate < rates[1]


def test_a_model_that_spells_otherwise_is_found_out() -> None:
    made, said = Guesser(), list(PROMPT)
    for _ in range(30):
        made.look(said, 8, Leaves(30))
        said.append(31)
    assert (made.look(said, 8, Leaves(30)) or 1.0) < 0.05
