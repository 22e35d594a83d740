"""Rows whose next tokens can be drawn one after the other, by a wing in one call with the head: which they are, and
what it is told.

That depends on the request alone, so a row goes the same way in any company. Knows no logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.engine import philox
from service.engine.chain import LAST_DRAW
from service.engine.penalties import biases_of, penalty_length, penalty_window
from service.engine.ragged import flatten
from service.engine.request import Request

MAX_TOP_K = 1024
"""Beyond it, ranking the row's whole vocabulary at once is the faster way."""

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
DrawArrays: TypeAlias = tuple[F64, F64, I64, I32, I64, NDArray[np.float32], I32]
"""The fields of a `DrawBatch`, in their order."""


def is_drawable(request: Request) -> bool:
    """The fixed chain of sampler.py without grammar and typical_p is all that its tokens ask for."""
    if request.matcher is not None or request.params.typical_p < 1.0:
        return False
    return is_ranked(request)


def is_ranked(request: Request) -> bool:
    """The fixed chain of sampler.py is all it asks for, on a bounded number of the likeliest tokens."""
    return request.is_plain and (request.params.temperature <= 0.0 or 0 < request.params.top_k <= MAX_TOP_K)


def num_ahead(request: Request) -> int:
    """So many of its next tokens can be drawn one after the other, with nothing to do or to tell in between.

    At least 1 where a wing can draw the next; 0 where it cannot, or where something is told of it.
    """
    if request.report.logprobs is not None or not is_drawable(request):
        return 0
    num_left = request.limits.min_tokens - request.num_generated  # then the biases change
    return min(request.limit - request.total, num_left) if num_left > 0 else request.limit - request.total


def num_guessable(request: Request) -> int:
    """So many of its next tokens may be guessed and chosen all at once, the last of them followed by one more."""
    if request.report.logprobs is not None or not is_ranked(request):
        return 0
    return request.limit - request.total - 1


def draw_arrays(requests: Sequence[Request], rounds: int = 1) -> DrawArrays:
    """How the next token of each of these requests is drawn, and those of the rounds after it.

    Biases are those of the next token: they must hold for all rounds.
    """
    windows = [penalty_window(request) for request in requests]
    biases = [biases_of(request) for request in requests]
    told = [pair for own in biases for pair in own]
    return (
        np.array([_parameters(request) for request in requests], dtype=np.float64),
        np.array([_randoms(request, rounds) for request in requests], dtype=np.float64).T.copy(),
        flatten(windows),
        _starts(windows),
        np.array([token_id for token_id, _ in told], dtype=np.int64),
        np.array([bias for _, bias in told], dtype=np.float32),
        _starts(biases),
    )


def _starts(parts: Sequence[Sequence[object]]) -> I32:
    starts = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return starts


def _parameters(request: Request) -> tuple[float, ...]:
    p = request.params
    return (
        *(p.temperature, p.top_k, p.top_p, p.min_p),
        *(p.repeat_penalty, p.presence_penalty, p.frequency_penalty, penalty_length(request)),
    )


def _randoms(request: Request, rounds: int) -> list[float]:
    p, first = request.params, request.total
    if p.temperature <= 0.0:
        return [0.0] * rounds
    return [
        philox.uniform(p.seed, position, request.choice_index, LAST_DRAW) for position in range(first, first + rounds)
    ]
