"""How likely a token was: the log-softmax of one row of raw logits, in float64, over the whole vocabulary.

Each row is reduced by itself and in a fixed order, so that what is told of a token depends on its own logits alone.
Knows neither tensors nor where logits come from.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Logprobs

F32 = NDArray[np.float32]


def score(logits: F32, token_id: int, num_top: int) -> Logprobs | None:
    """What float32 [V] logits tell of this token; None if they are not all finite."""
    largest = float(logits.max())
    if not math.isfinite(largest) or not math.isfinite(float(logits.min())):
        return None
    # A row is contiguous: numpy adds its numbers pairwise, in an order that its length alone decides.
    log_sum = math.log(float(np.exp(logits.astype(np.float64) - largest).sum()))
    top = tuple((top_id, float(logits[top_id]) - largest - log_sum) for top_id in likeliest(logits, num_top))
    own = logits[token_id]
    return Logprobs(token_id, float(own) - largest - log_sum, int((logits > own).sum()) + 1, top)


def likeliest(logits: F32, num: int) -> list[int]:
    """The ids of the `num` largest logits, equal ones by id; all of them if there are fewer."""
    num = min(num, len(logits))
    if num == 0:
        return []
    least = np.partition(logits, len(logits) - num)[len(logits) - num]
    candidates = np.flatnonzero(logits >= least)  # in order of their ids, and more than `num` where the last is a tie
    order = np.argsort(-logits[candidates], kind="stable")[:num]
    ids: list[int] = candidates[order].tolist()
    return ids
