"""Rows whose next token a wing can draw by itself, in one call with the head: which they are, and what it is told.

That depends on the request alone, so a row goes the same way in any company. Knows no logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.engine import philox
from service.engine.chain import LAST_DRAW
from service.engine.penalties import biases_of, penalty_window
from service.engine.ragged import flatten
from service.engine.request import Request

MAX_TOP_K = 1024
"""Beyond it, ranking the row's whole vocabulary at once is the faster way."""

DrawArrays: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]
"""windows, starts and parameters of a `DrawBatch`."""


def is_drawable(request: Request) -> bool:
    """The fixed chain of sampler.py without bias, grammar and typical_p is all that its next token asks for."""
    params = request.params
    if not request.is_plain or request.matcher is not None or params.typical_p < 1.0 or biases_of(request):
        return False
    return params.temperature <= 0.0 or 0 < params.top_k <= MAX_TOP_K


def draw_arrays(requests: Sequence[Request]) -> DrawArrays:
    """How the next token of each of these requests is drawn."""
    windows = [penalty_window(request) for request in requests]
    starts = np.zeros(len(requests) + 1, dtype=np.int32)
    np.cumsum([len(window) for window in windows], out=starts[1:])
    return flatten(windows), starts, np.array([_parameters(request) for request in requests], dtype=np.float64)


def _parameters(request: Request) -> tuple[float, ...]:
    p = request.params
    random = philox.uniform(p.seed, request.total, request.choice_index, LAST_DRAW) if p.temperature > 0.0 else 0.0
    return (
        *(p.temperature, p.top_k, p.top_p, p.min_p),
        *(p.repeat_penalty, p.presence_penalty, p.frequency_penalty),
        random,
    )
