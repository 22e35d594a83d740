"""The samplers that cut: which candidates of a row stay.

Scores are float64 [R, C], each row in descending order; what is cut, or never was there, has score -inf. Each sum runs
over the candidates one after the other (`np.add.accumulate`), where what is cut adds an exact zero, so a row comes out
the same however wide its neighbours make it. Knows no requests and no random numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TINY = 5e-324
F64 = NDArray[np.float64]


def top_k(scores: F64, k: F64) -> F64:
    """Keep the k largest."""
    scores = scores[:, : int(min(k.max(), scores.shape[1]))]
    return np.where(np.arange(scores.shape[1]) < k, scores, -np.inf)


def typical_p(scores: F64, p: F64 | float, min_keep: int = 0) -> F64:
    """Keep the tokens whose surprise is nearest the entropy, until their probability exceeds p; p >= 1 keeps all.

    Source: Meister et al., "Locally typical sampling" (TACL 2023), as llama.cpp has it.
    """
    relative = weights(scores)
    probs = relative / np.add.accumulate(relative, axis=1)[:, -1:]
    surprise = -np.log(probs)
    entropy = np.add.accumulate(np.where(probs > 0.0, probs * surprise, 0.0), axis=1)[:, -1:]
    order = np.abs(surprise - entropy).argsort(axis=1, kind="stable")
    is_kept = sums_before(np.take_along_axis(probs, order, axis=1)) <= p
    is_kept[:, :min_keep] = True
    is_typical = np.empty(scores.shape, dtype=np.bool_)
    np.put_along_axis(is_typical, order, is_kept, axis=1)
    return np.where(is_typical | (p >= 1.0), scores, -np.inf)


def top_p(scores: F64, p: F64 | float) -> F64:
    """Keep the likeliest tokens until their probability reaches p, at least one; p >= 1 keeps all.

    Source: Holtzman et al., "The curious case of neural text degeneration" (ICLR 2020), nucleus sampling.
    """
    relative = weights(scores)
    before = sums_before(relative)
    enough = np.where(p >= 1.0, np.inf, np.maximum(p, TINY)) * (before[:, -1:] + relative[:, -1:])
    return np.where(before < enough, scores, -np.inf)


def min_p(scores: F64, p: F64 | float) -> F64:
    """Keep the tokens at least p times as likely as the likeliest; p = 0 keeps all."""
    return np.where(weights(scores) >= p, scores, -np.inf)


def weights(scores: F64, temperature: F64 | float = 1.0) -> F64:
    """exp(score / temperature), scaled so that the largest is 1; 0 for what is cut."""
    relative: F64 = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    return relative


def probabilities(scores: F64) -> F64:
    """The softmax of one row's scores [C]."""
    relative = weights(scores[None])[0]
    probs: F64 = relative / np.add.accumulate(relative)[-1]
    return probs


def sums_before(values: F64) -> F64:
    """What stands left of each value, added up from the left."""
    before = np.zeros_like(values)
    np.add.accumulate(values[:, :-1], axis=1, out=before[:, 1:])
    return before
