from __future__ import annotations

import time

import numpy as np
import pytest

from service.engine.breakers import Breakers
from service.engine.dry import dry_penalties, repeats
from tests.service.engine.chain_reference import dry_taken, tokens_since_break
from tests.service.engine.sampling_reference import request_of

PIECES = [b"a", b"b", b"ab", b"", b"\xc3", b"\xa9", b"ba", b"\xc3\xa9a", b"aaa", b" "]


def spell(token_id: int) -> bytes:
    return PIECES[token_id % len(PIECES)]


@pytest.mark.parametrize("seed", range(30))
def test_repeats_are_those_of_a_search_place_by_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(rng.integers(1, 4), size=rng.integers(1, 60)).tolist()
    expected = []
    for place in range(1, len(tokens)):
        length = 0
        while place + length < len(tokens) and tokens[length] == tokens[place + length]:
            length += 1
        if length:
            expected.append((place, length))
    assert list(repeats(tokens)) == expected


@pytest.mark.parametrize("seed", range(60))
def test_penalties_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [["a"], ["ab", "é"], ["bab"], ["aaaa"], [], ["é a"]][seed % 6]
    request = request_of(
        rng.integers(rng.integers(1, 10), size=rng.integers(1, 70)).tolist(),
        n_ctx=int(rng.integers(70, 90)),
        dry_multiplier=0.8,
        dry_base=float(rng.choice([1.0, 1.1, 1.75])),
        dry_allowed_length=int(rng.integers(4)),
        dry_penalty_last_n=int(rng.choice([-1, 1, 8, 40])),
        dry_sequence_breakers=tuple(words),
    )
    request.breakers = Breakers(words, spell)
    assert dry_penalties(request) == pytest.approx(dry_taken(request, spell))


def test_going_on_repeating_costs_more_the_longer_the_repeat() -> None:
    costs = []
    for length in range(2, 6):
        said = list(range(10, 10 + length))
        request = request_of([*said, 99, 7, *said], dry_multiplier=0.5, dry_base=2.0, dry_allowed_length=2)
        costs.append(dry_penalties(request))
    assert costs == [{99: 0.5}, {99: 1.0}, {99: 2.0}, {99: 4.0}]


def test_a_repeat_ends_at_a_breaker_and_a_breaker_itself_is_free() -> None:
    tokens = [1, 2, 3, 4, 1, 2, 3]
    free = request_of(tokens, dry_multiplier=1.0, dry_allowed_length=1, dry_base=2.0)
    assert dry_penalties(free) == {4: 4.0}
    free.breakers = Breakers(["b"], lambda token_id: b"b" if token_id == 2 else b"x")
    assert dry_penalties(free) == {4: 1.0}
    free.breakers = Breakers(["b"], lambda token_id: b"b" if token_id == 4 else b"x")
    assert dry_penalties(free) == {}


@pytest.mark.parametrize("seed", range(40))
def test_breakers_are_found_as_in_the_whole_text_however_it_is_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.choice(
        ["a", "b", "ab", "aab", "é", "éa", "ba ", "aaaa"], size=rng.integers(0, 4), replace=False
    ).tolist()
    tokens = rng.integers(len(PIECES), size=50).tolist()
    breakers = Breakers(words, spell)
    length = 0
    while length < len(tokens):
        length += int(rng.integers(1, 9))
        read = tokens[:length]
        expected = tokens_since_break(read, [word.encode() for word in words], spell)
        assert breakers.num_since(read) == breakers.num_since(read) == expected


def test_no_length_of_a_repeat_leaves_the_range_of_the_logits() -> None:
    request = request_of([1] * 3000, dry_multiplier=100.0, dry_base=100.0, dry_allowed_length=0)
    assert dry_penalties(request) == {1: 1e30}
    request = request_of([1] * 3000, dry_multiplier=100.0, dry_base=1.0, dry_allowed_length=0)
    assert dry_penalties(request) == {1: 100.0}


def test_the_time_does_not_grow_with_the_square_of_the_window() -> None:
    """The worst text, one token over and over: a search place by place would take minutes."""
    request = request_of([1] * 40_000, dry_multiplier=1.0, dry_allowed_length=1)
    started = time.monotonic()
    assert dry_penalties(request)
    assert time.monotonic() - started < 5.0


def test_a_window_too_short_for_a_repeat_costs_nothing() -> None:
    assert dry_penalties(request_of([5], dry_multiplier=1.0)) == {}
    assert dry_penalties(request_of([5, 5, 5], dry_multiplier=1.0, dry_penalty_last_n=2)) == {}
