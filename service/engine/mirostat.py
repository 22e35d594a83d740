"""Mirostat: as many candidates are kept as keep the surprise of what is drawn near a target.

Source: Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity" (ICLR 2021),
algorithms 1 and 2, with llama.cpp's constants. mu is the limit that moves, in bits; it starts at twice the target.
Scores are float64 [C] in descending order, none of them -inf. Knows no requests and no random numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.engine.cuts import probabilities

NUM_OBSERVED = 100
"""Tokens from whose probabilities version 1 estimates the exponent of Zipf's law (m in the paper)."""


def num_kept_by_zipf(scores: NDArray[np.float64], mu: float) -> int:
    """Version 1: how many of the candidates to keep, assuming that their probabilities obey Zipf's law."""
    probs = probabilities(scores)
    head = probs[:NUM_OBSERVED]
    head = head[head > 0.0]
    if len(head) < 2:
        return 1
    ranks = np.log(np.arange(2, len(head) + 1) / np.arange(1, len(head)))
    exponent = float(_sum(ranks * np.log(head[:-1] / head[1:])) / _sum(ranks * ranks))
    above_one = exponent - 1.0
    if abs(above_one) < 1e-9:  # the limit of what follows
        quotient = 1.0 / np.log(len(scores))
    else:
        quotient = above_one / (1.0 - np.float64(len(scores)) ** -above_one)
    kept = (quotient * np.exp2(mu)) ** (1.0 / max(exponent, 1e-9))
    return int(min(max(kept, 1.0), len(scores)))


def num_kept_by_surprise(scores: NDArray[np.float64], mu: float) -> int:
    """Version 2: how many of the candidates have a surprise of mu at most; at least one."""
    is_over = -np.log2(probabilities(scores)) > mu
    return max(int(is_over.argmax()), 1) if is_over.any() else len(scores)


def next_mu(mu: float, prob: float, tau: float, eta: float) -> float:
    """The limit after a token of this probability was drawn."""
    return mu - eta * (-float(np.log2(prob)) - tau)


def _sum(values: NDArray[np.float64]) -> np.float64:
    total: np.float64 = np.add.accumulate(values)[-1]
    return total
