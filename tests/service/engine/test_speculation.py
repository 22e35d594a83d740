from __future__ import annotations

import pytest

from service.engine.speculation import SLOWER_FOR_OTHERS, GuessCost, draft_lengths


def cost_of(num_rows: int, plain_ms: float, each_ms: float) -> GuessCost:
    """What was measured in steps of so many rows."""
    made = GuessCost()
    made.observe(num_rows, 0, plain_ms)
    for _ in range(60):
        made.observe(num_rows, 4, plain_ms + 4 * each_ms)
    return made


def speed(rate: float, length: int, plain_ms: float, each_ms: float) -> float:
    """Tokens a millisecond that one row says."""
    return sum(rate**k for k in range(length + 1)) / (plain_ms + each_ms * length)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("each_ms", [0.5, 2.0, 4.5, 10.0, 25.0])
def test_one_row_checks_as_many_guesses_as_are_fastest(rate: float, each_ms: float) -> None:
    (length,) = draft_lengths([rate], [16], cost_of(1, 20.0, each_ms))
    best = max(range(17), key=lambda k: speed(rate, k, 20.0, each_ms))
    assert speed(rate, length, 20.0, each_ms) == pytest.approx(speed(rate, best, 20.0, each_ms), rel=1e-3)


def test_no_row_gets_more_than_it_may_nor_any_without_a_guess() -> None:
    free = cost_of(4, 20.0, 0.0)
    assert draft_lengths([1.0, None, 0.9, 0.9], [3, 9, 0, 5], free) == [3, 0, 0, 5]


def test_the_likeliest_guesses_come_first() -> None:
    lengths = draft_lengths([0.6, 0.95, 0.9], [16] * 3, cost_of(3, 30.0, 1.0))
    assert lengths[1] > lengths[2] > lengths[0]


def test_others_are_made_to_wait_a_quarter_longer_at_most() -> None:
    cost = cost_of(2, 20.0, 1.1)
    assert draft_lengths([0.999, None], [64, 64], cost) == [int(20.0 * (SLOWER_FOR_OTHERS - 1) / 1.1), 0]
    assert draft_lengths([0.999], [64], cost_of(1, 20.0, 0.1)) == [64]


def test_nothing_is_guessed_before_a_step_of_so_many_rows_was_measured() -> None:
    made = GuessCost()
    assert not made.can_pay(0)
    assert not made.can_pay(1)
    made.observe(1, 0, 20.0)
    assert made.can_pay(1)
    assert not made.can_pay(2)
    made.observe(2, 0, 30.0)
    assert not made.can_pay(1)


def test_where_a_guess_costs_its_share_of_the_step_none_can_pay_until_it_is_forgotten() -> None:
    made = cost_of(1, 10.0, 11.0)
    assert not made.can_pay(1)
    num_steps = 0
    while not made.can_pay(1):
        made.observe(1, 0, 10.0)
        num_steps += 1
    assert 20 < num_steps < 200


def test_what_was_measured_is_found_again() -> None:
    made = cost_of(3, 40.0, 5.0)
    assert (made.plain_ms, made.each_ms) == (40.0, pytest.approx(5.0, rel=1e-3))
    made.observe(3, 2, 10.0)  # faster than without: the clock was not ours
    assert 0.0 < made.each_ms < 5.0
