from __future__ import annotations

import random

import pytest

from service.engine.lookup import BITS, BREAK, PromptLookup


def followed(prompt: list[int], said: list[int], prediction: tuple[int, ...] = ()) -> PromptLookup:
    made = PromptLookup(prediction)
    made.follow([*prompt, *said], len(prompt))
    return made


def test_what_followed_the_last_three_tokens_before_is_the_guess() -> None:
    assert followed([1, 2, 3, 4, 5, 9], [1, 2, 3]).guess(3) == (4, 5, 9)


def test_two_tokens_in_common_are_no_quotation() -> None:
    made = followed([1, 2, 3, 4, 5, 9], [2, 3])
    assert (made.has_guess, made.guess(4)) == (False, ())


def test_of_two_places_the_later_one_counts() -> None:
    assert followed([1, 2, 3, 4, 1, 2, 3, 5, 8], [1, 2, 3]).guess(1) == (5,)


def test_a_run_that_is_followed_is_kept_to_where_the_same_words_stand_twice() -> None:
    made = followed([7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 0], [0, 7, 1])
    assert not made.has_guess
    made.follow([7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 0, 0, 7, 1, 2], 11)
    assert made.guess(2) == (3, 4)
    made.follow([7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 0, 0, 7, 1, 2, 3], 11)
    assert made.guess(2) == (4, 8)  # by itself, 1 2 3 would be followed by 5


def test_a_run_up_to_the_newest_token_goes_on_with_itself() -> None:
    assert followed([5, 6], [5, 6, 5, 6, 5]).guess(7) == (6, 5, 6, 5, 6, 5, 6)
    assert followed([4], [4, 4, 4]).guess(5) == (4,) * 5


def test_an_answer_begins_as_it_is_predicted_and_returns_to_the_prediction_after_other_words() -> None:
    prompt, predicted = [1, 2, 3, 4], (10, 11, 12, 13, 14, 15, 16)
    assert followed(prompt, [], predicted).guess(9) == predicted
    assert followed(prompt, [10, 11], predicted).guess(2) == (12, 13)
    assert not followed(prompt, [10, 99], predicted).has_guess
    assert followed(prompt, [10, 99, 12, 13, 14], predicted).guess(9) == (15, 16)


def test_a_run_goes_on_behind_one_other_token_and_not_behind_two() -> None:
    prompt, predicted = [1, 2, 3, 4], (10, 11, 12, 13, 14, 15, 16, 17)
    assert followed(prompt, [10, 11, 12, 99], predicted).guess(3) == (14, 15, 16)
    assert followed(prompt, [10, 11, 12, 99, 14], predicted).guess(3) == (15, 16, 17)
    assert not followed(prompt, [10, 11, 12, 99, 98], predicted).has_guess
    assert not followed(prompt, [*predicted, 99], predicted).has_guess  # behind its end there is nothing


def test_nothing_is_guessed_beyond_a_prediction() -> None:
    made = followed([1, 2], [10, 11, 12], (10, 11, 12))
    assert (made.has_guess, made.guess(3)) == (False, ())


def test_guesses_count_whether_or_not_anybody_asked_for_them() -> None:
    right = followed([1], list(range(10, 40)), tuple(range(10, 40)))
    assert right.hit_rate > 0.95
    wrong = followed([1, 2, 3, 9, 1, 2, 3, 9], [5, 1, 2, 3, 8])
    assert wrong.hit_rate < 0.5
    assert followed([1, 2, 3, 9], [4, 5, 6]).hit_rate == 0.5


def test_the_prompt_itself_is_no_guess() -> None:
    assert followed([1, 2, 3, 4] * 20, []).hit_rate == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_in_one_go_or_token_by_token_it_is_the_same(seed: int) -> None:
    rng = random.Random(seed)
    prompt, said = [rng.randrange(3) for _ in range(12)], [rng.randrange(3) for _ in range(40)]
    prediction = tuple(rng.randrange(3) for _ in range(rng.choice([0, 20])))
    step_by_step = PromptLookup(prediction)
    for count in range(len(said) + 1):
        step_by_step.follow([*prompt, *said[:count]], len(prompt))
    at_once = followed(prompt, said, prediction)
    assert step_by_step.guess(8) == at_once.guess(8)
    assert step_by_step.hit_rate == at_once.hit_rate


def test_the_break_is_the_id_of_no_token() -> None:
    assert BREAK == 2**BITS - 1 > 1_000_000
