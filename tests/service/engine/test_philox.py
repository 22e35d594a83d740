from __future__ import annotations

import numpy as np
import pytest

from service.engine import philox
from tests.service.engine.sampling_reference import reference_uniform

# Random123, kat_vectors: philox4x32 with 10 rounds.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def words(values: list[int]) -> list[np.ndarray]:
    return [np.array([value], dtype=np.uint64) for value in values]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter: list[int], key: list[int], expected: list[int]) -> None:
    out = philox.philox4x32(tuple(words(counter)), tuple(words(key)))
    assert [int(word[0]) for word in out] == expected


def test_a_number_is_a_function_of_seed_position_choice_and_draw() -> None:
    places = [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (2**64 - 1, 2**20 + 77, 7, 3),
        (1 << 32, 63, 0, 0),
        (1 << 32, 64, 0, 0),
    ]
    numbers = [philox.uniform(*place) for place in places]
    assert numbers == [reference_uniform(*place) for place in places]
    assert len(set(numbers)) == len(places)


def test_numbers_lie_in_the_unit_interval_and_are_even_over_positions_and_seeds() -> None:
    for numbers in (
        [philox.uniform(1, position, 0) for position in range(8000)],
        [philox.uniform(seed, 5, 0) for seed in range(8000)],
    ):
        assert 0.0 <= min(numbers) <= max(numbers) < 1.0
        histogram, _ = np.histogram(numbers, bins=20, range=(0, 1))
        assert ((histogram - 400) ** 2 / 400).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
