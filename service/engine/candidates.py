"""The tokens a row may become: enough of the largest logits, edited, in order.

Not every logit is looked at. The k largest of a row's edited logits are among its k + E largest raw ones and its E
edited ones, so those suffice; only a row without a limit needs its whole vocabulary. How many more a neighbour needs
changes nothing: the surplus ranks behind a row's own k.

Knows nothing of probabilities, nor of the model beyond `LogitSource`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.penalties import Edits, apply_edits, collect_edits
from service.engine.request import Request

MAX_TOP = 1024
"""A row that needs more of the largest logits than this is ranked from its whole vocabulary, by itself."""

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
LOW_WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
SIGN_BIT = np.uint32(0x80000000)


class LogitSource(Protocol):
    """What sampling needs of a model; hidden states are f32 [R, H]."""

    def logits(self, x: Tensor) -> Tensor:
        """f32 [R, V]."""
        ...

    def top_logits(self, x: Tensor, k: int, extra_ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 and logits f32, both [R, min(k, V) + E]: the k largest in order, then those of extra_ids [R, E]."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Some rows and their candidates in order of rank: logit descending, then id ascending.

    rows      which of the requests these are, [N]
    ids       int64   [N, C]
    logits    float32 [N, C], after bias and penalties; -inf where a token is banned or there is none
    finite    bool    [N]: no NaN and no +inf was among the row's logits (where one was, their order means nothing)
    """

    rows: list[int]
    ids: I64
    logits: F32
    finite: NDArray[np.bool_]


def rank_candidates(
    source: LogitSource, hidden: Tensor, requests: Sequence[Request], limits: Sequence[int | None]
) -> list[Candidates]:
    """Rank at least the limits[r] best tokens of each request (None: all), given hidden states f32 [R, H].

    Every request is in one element of the list.
    """
    edits = collect_edits(requests)
    needs = [
        MAX_TOP + 1 if limit is None else limit + num_edits
        for limit, num_edits in zip(limits, edits.per_row(), strict=True)
    ]
    narrow = [row for row, need in enumerate(needs) if need <= MAX_TOP]
    ranked = []
    if narrow:
        x, own, own_requests = _select(narrow, hidden, edits, requests)
        top_ids, top_logits = source.top_logits(x, max(needs[row] for row in narrow), torch.from_numpy(own.ids))
        in_order = own.ids.size == 0
        ranked.append(_rank(narrow, top_ids.numpy(), top_logits.numpy(), own, own_requests, in_order=in_order))
    for row in range(len(requests)):
        if needs[row] > MAX_TOP:
            x, own, own_requests = _select([row], hidden, edits, requests)
            every = source.logits(x).numpy()
            ids = np.concatenate([np.arange(every.shape[1])[None, :], own.ids], axis=1)
            logits = every[:, ids[0]]  # NO_ID reads some logit, which its bias of -inf undoes
            ranked.append(_rank([row], ids, logits, own, own_requests, in_order=False))
    return ranked


def _select(
    rows: list[int], hidden: Tensor, edits: Edits, requests: Sequence[Request]
) -> tuple[Tensor, Edits, Sequence[Request]]:
    if len(rows) == len(requests):
        return hidden, edits, requests
    return hidden[rows], edits.of_rows(rows), [requests[row] for row in rows]


def _rank(
    rows: list[int], ids: I64, logits: F32, edits: Edits, requests: Sequence[Request], *, in_order: bool
) -> Candidates:
    """Edit and sort: ids and raw logits are [N, K + E], some of the vocabulary and then those of edits.ids."""
    num_edits = edits.ids.shape[1]
    if num_edits:
        plain = np.where(edits.contains(ids[:, :-num_edits]), -np.inf, logits[:, :-num_edits])
        edited = apply_edits(logits[:, -num_edits:], edits, requests)
        logits = np.concatenate([plain, edited], axis=1, dtype=np.float32)
    finite = logits.max(axis=1) < np.inf  # false for NaN too
    if not in_order:
        ids, logits = sort_by_rank(ids, logits)
    return Candidates(rows, ids, logits, finite)


def sort_by_rank(ids: I64, logits: F32) -> tuple[I64, F32]:
    """Sort each row [N, C] by (logit descending, id ascending), for ids of 32 bits and logits that are not NaN.

    Both travel in one integer: the bits of a float, made to grow as the float falls, above the id.
    """
    bits = (logits + np.float32(0.0)).view(np.uint32)  # -0.0 + 0.0 is 0.0: the two zeros are a tie
    falling = np.where(bits & SIGN_BIT, bits, ~(bits | SIGN_BIT))
    keys = (falling.astype(np.uint64) << HALF) | (ids.view(np.uint64) & LOW_WORD)
    keys.sort(axis=1)
    falling = (keys >> HALF).astype(np.uint32)
    bits = np.where(falling & SIGN_BIT, falling, ~(falling | SIGN_BIT))
    return (keys & LOW_WORD).view(np.int64), bits.view(np.float32)
