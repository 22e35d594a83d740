"""Ragged lists into padded arrays, in one conversion: the lists of a step are many and short. Knows nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray


def flatten(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """All values, row after row: int64 [sum of lengths]."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=sum(map(len, rows)))


def pad(rows: Sequence[Sequence[int]], filler: int) -> NDArray[np.int64]:
    """int64 [len(rows), longest row], each row filled up at its end."""
    lengths = [len(row) for row in rows]
    width = max(lengths, default=0)
    values = flatten(rows)
    if values.size == width * len(lengths):
        return values.reshape(len(lengths), width)
    padded = np.full((len(lengths), width), filler, dtype=np.int64)
    padded[np.arange(width) < np.array(lengths)[:, None]] = values
    return padded
