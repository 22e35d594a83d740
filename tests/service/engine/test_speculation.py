from __future__ import annotations

import pytest

from service.engine.speculation import MOST, OPTIMISM_STEPS, SLOWER_FOR_OTHERS, GuessCost, draft_lengths

# What steps of one row took with 2B-4T's shape on two cores, in ms by the number of guesses.
MEASURED = {0: 21.7, 1: 22.2, 3: 27.6, 5: 37.5, 7: 47.6, 8: 53.5, 11: 70.2, 15: 76.6, 16: 86.4, 23: 123.4}


def cost_of(num_rows: int, taken_ms: dict[int, float]) -> GuessCost:
    """What was measured in steps of so many rows, by their numbers of guesses."""
    made = GuessCost()
    for count, ms in taken_ms.items():
        for _ in range(40):
            made.observe(num_rows, count, ms)
    return made


def straight(num_rows: int, each: float) -> list[float]:
    """The ratios of steps in which each guess adds so much of a step's time."""
    return cost_of(num_rows, {0: 20.0, MOST: 20.0 + MOST * 20.0 * each}).ratios(num_rows)


def speed(rate: float, length: int, ratio: float) -> float:
    """Tokens that one row says in the time of a step without guesses."""
    return sum(rate**k for k in range(length + 1)) / ratio


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.3, 0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("each", [0.02, 0.1, 0.22, 0.5])
def test_one_row_checks_as_many_guesses_as_are_fastest(rate: float, each: float) -> None:
    ratios = straight(1, each)
    (length,) = draft_lengths([rate], [16], ratios)
    fastest = max(speed(rate, count, ratios[count]) for count in range(17))
    assert speed(rate, length, ratios[length]) == pytest.approx(fastest)


def test_where_the_first_ones_are_nearly_free_they_are_checked_with_little_hope() -> None:
    ratios = cost_of(1, MEASURED).ratios(1)
    lengths = [draft_lengths([rate], [16], ratios)[0] for rate in (0.01, 0.1, 0.5, 0.95, 1.0)]
    assert lengths == [0, 1, 2, 15, 15]


def test_no_row_gets_more_than_it_may_nor_any_without_a_guess() -> None:
    assert draft_lengths([1.0, None, 0.9, 0.9], [3, 9, 0, 5], [1.0] * 20) == [3, 0, 0, 5]
    assert draft_lengths([1.0, 1.0], [60, 60], [1.0] * 10) == [5, 4]


def test_the_likeliest_guesses_come_first() -> None:
    lengths = draft_lengths([0.6, 0.95, 0.9], [16] * 3, straight(3, 0.02))
    assert lengths[1] > lengths[2] > lengths[0]


def test_others_are_made_to_wait_a_quarter_longer_at_most() -> None:
    ratios = straight(2, 0.03)
    assert ratios[-1] <= SLOWER_FOR_OTHERS
    assert draft_lengths([0.999, None], [64, 64], ratios) == [8, 0]
    assert draft_lengths([0.999], [64], straight(1, 0.001)) == [64]


def test_between_what_was_seen_the_curve_is_straight_and_goes_on_as_it_came() -> None:
    ratios = cost_of(1, {0: 10.0, 2: 11.0, 6: 19.0}).ratios(1)
    assert ratios[:9] == pytest.approx([1.0, 1.05, 1.1, 1.3, 1.5, 1.7, 1.9, 2.05, 2.2])


def test_nothing_is_guessed_before_a_step_of_so_many_rows_was_seen() -> None:
    made = GuessCost()
    made.observe(1, 5, 30.0)
    assert made.ratios(0) == made.ratios(1) == []
    made.observe(1, 0, 20.0)
    assert len(made.ratios(1)) == MOST + 1
    assert made.ratios(2) == []


def test_where_no_guess_can_be_worth_its_time_none_is_made_until_that_is_forgotten() -> None:
    made = cost_of(1, {0: 10.0, 2: 33.0})
    assert made.ratios(1) == []
    num_steps = 0
    while not made.ratios(1):
        made.observe(1, 0, 10.0)
        num_steps += 1
    assert 0 < num_steps <= OPTIMISM_STEPS


def test_a_step_that_stood_still_is_soon_forgotten() -> None:
    made = cost_of(1, {0: 10.0})
    made.observe(1, 4, 1e6)
    assert made.ratios(1) == []
    for _ in range(OPTIMISM_STEPS):
        made.observe(1, 0, 10.0)
    assert made.ratios(1)[4] == pytest.approx(4.6)


def test_a_step_that_was_faster_with_guesses_counts_as_one_without() -> None:
    assert cost_of(1, {0: 20.0, 2: 5.0}).ratios(1)[2] == 1.0
