"""When a head's codes are kept in halves, so that its largest logits are found with half of the bytes.

The upper four bits of a code say which rows can be among the largest; only those are rescored with the lower four
(native/screening.h). That pays where reading the table is what a head costs, and where the codes of a row spread over
their range: with a few far outliers in a row, four bits say little of its other values.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_VALUES = 1 << 26  # no cache of a CPU holds so many bytes
LEAST_SPREAD = 24.0  # rms of a row's codes; of normally distributed values 35, of Student's t with 10 degrees 26
SAMPLED_ROWS = 1024


def halves_pay(weight: Tensor) -> bool:
    """Whether the rows of a head [V, H] are many enough, and fit: judged by rows taken evenly from all of them."""
    if weight.numel() < LEAST_VALUES:
        return False
    sample = weight[:: max(1, weight.shape[0] // SAMPLED_ROWS)].to(torch.float32)
    rms, top = sample.square().mean(1).sqrt(), sample.abs().amax(1).clamp_min(1e-30)
    return bool(127 * (rms / top).mean() >= LEAST_SPREAD)
