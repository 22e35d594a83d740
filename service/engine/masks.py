"""Grammars in the sampler: what a row may become is cut to what its grammar allows, before anything else is cut.

Two kinds of masks. One that allows few tokens lists them: their logits are asked for by id, along with those that a
bias or a penalty edits, in the same pass over the head as everybody's. An open one (inside a string, say) allows nearly
all, so of the largest logits enough survive; where they do not, the row is ranked from its whole vocabulary, by itself.
Either way its neighbours are asked for the same logits as without it.

A grammar is stronger than a bias: where biases forbid all that it allows, they do not count for that token.
Knows nothing of how grammars work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.engine.grammar import MatcherError
from service.engine.penalties import NO_ID
from service.engine.request import Request

MAX_LISTED = 256


@dataclass(frozen=True, slots=True)
class Mask:
    """What one row may become: bool [V]; `listed`: the same as ids, in order, where they are few."""

    allowed: NDArray[np.bool_]
    listed: list[int] | None


Masks: TypeAlias = Sequence[Mask | None]


def read_masks(requests: Sequence[Request]) -> tuple[Masks | None, dict[int, str]]:
    """The mask of each request that has a grammar, None where none has; and, by row, why a grammar has failed."""
    masks: list[Mask | None] = [None] * len(requests)
    failures: dict[int, str] = {}
    for row, request in enumerate(requests):
        if request.matcher is not None:
            try:
                masks[row] = _mask(request.matcher.mask())
            except MatcherError as error:
                failures[row] = str(error)
    return (masks if any(masks) else None), failures


def _mask(allowed: NDArray[np.bool_]) -> Mask:
    is_short = np.count_nonzero(allowed) <= MAX_LISTED
    return Mask(allowed, np.flatnonzero(allowed).tolist() if is_short else None)


def of_rows(masks: Masks | None, rows: Sequence[int]) -> Masks | None:
    own = None if masks is None else [masks[row] for row in rows]
    return own if own and any(own) else None


def listed_ids(masks: Masks | None) -> list[list[int]] | None:
    """For each row the ids whose logits must be there; None where no row lists any."""
    if masks is None or all(mask is None or mask.listed is None for mask in masks):
        return None
    return [[] if mask is None or mask.listed is None else mask.listed for mask in masks]


def short_rows(
    masks: Masks, ids: NDArray[np.int64], edited_ids: NDArray[np.int64], looked_at: Sequence[tuple[int, int]]
) -> Iterator[int]:
    """The rows [R] with open masks that leave too few of the likeliest tokens, int64 [R, K].

    looked_at: for each row how many of them count, so that the answer does not depend on what its neighbours asked for;
    and how many of those must be left, without those that are edited.
    """
    for row, (mask, (num_ids, least)) in enumerate(zip(masks, looked_at, strict=True)):
        if mask is not None and mask.listed is None:
            own_ids = ids[row, :num_ids]
            if np.count_nonzero(mask.allowed[own_ids] & ~np.isin(own_ids, edited_ids[row])) < least:
                yield row


def apply_masks(
    ids: NDArray[np.int64], edited: NDArray[np.float32], raw: NDArray[np.float32], masks: Masks
) -> NDArray[np.float32]:
    """-inf for what is not allowed. All [R, C]: ids, their edited logits, and their logits without edits."""
    masked = edited.copy()
    for row, mask in enumerate(masks):
        if mask is not None:
            is_allowed = mask.allowed[ids[row]] & (ids[row] != NO_ID)
            masked[row] = np.where(is_allowed, edited[row], -np.inf)
            if masked[row].max() == -np.inf:
                masked[row] = np.where(is_allowed, raw[row], -np.inf)
    return masked
