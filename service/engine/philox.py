"""Random numbers as a pure function of where they are used: Philox4x32-10.

A stream that is shared or advanced would make a request's tokens depend on its company and its history. Here a number
is a function of (seed, position, choice index, draw index) and of nothing else, so a preempted or re-run row draws the
same number again. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3 and the
known answers of Random123. Knows nothing of tokens.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
BLOCK = 64
"""Positions computed together: one call for 64 numbers of a request costs little more than for one."""

Words = NDArray[np.uint64]
Counter = tuple[Words, Words, Words, Words]


def uniform(seed: int, position: int, choice_index: int, draw_index: int = 0) -> float:
    """One number of [0, 1) with 53 random bits.

    seed is 0 .. 2**64 - 1, the others 0 .. 2**32 - 1; draw_index tells apart several draws for one token.
    """
    return _uniforms(seed, position // BLOCK, choice_index, draw_index)[position % BLOCK]


@lru_cache(maxsize=4096)
def _uniforms(seed: int, block: int, choice_index: int, draw_index: int) -> list[float]:
    """The numbers of positions block * BLOCK and on."""
    positions = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint64)
    choice, draw, zero = (np.full_like(positions, word) for word in (choice_index, draw_index, 0))
    key = (np.full_like(positions, seed) & LOW, np.full_like(positions, seed) >> HALF)
    high, low, _, _ = philox4x32((positions, choice, draw, zero), key)
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))
    numbers: list[float] = (bits.astype(np.float64) * 2.0**-53).tolist()
    return numbers


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Four random words for each counter. Every array is uint64 [N] and holds 32-bit words; none is modified."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (product1 >> HALF) ^ c1 ^ k0, product1 & LOW
        c2, c3 = (product0 >> HALF) ^ c3 ^ k1, product0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3
