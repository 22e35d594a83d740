"""The tokens a row may become, in order of their edited logits.

Not every logit has to be looked at. The k largest of a row's edited logits are among its k + E largest raw ones and
its E edited ones, so those suffice. How many more a neighbour needs changes nothing: they rank behind a row's own k.

Knows nothing of probabilities, nor where logits come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.masks import Masks, apply_masks
from service.engine.penalties import Edits, apply_edits
from service.engine.request import Request

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
LOW_WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
SIGN_BIT = np.uint32(0x80000000)


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

    def without(self, rows: list[int]) -> Candidates:
        """All but these rows."""
        kept = [place for place, row in enumerate(self.rows) if row not in rows]
        return Candidates([self.rows[place] for place in kept], self.ids[kept], self.logits[kept], self.finite[kept])


def rank(
    rows: list[int],
    ids: I64,
    logits: F32,
    edits: Edits,
    requests: Sequence[Request],
    *,
    in_order: bool,
    masks: Masks | None = None,
) -> Candidates:
    """Edit, mask and sort: ids and raw logits are [N, K + E], some of the vocabulary and then those of edits.ids."""
    num_edits = edits.ids.shape[1]
    raw = logits
    if num_edits:
        plain = np.where(edits.contains(ids[:, :-num_edits]), -np.inf, logits[:, :-num_edits])
        edited = apply_edits(logits[:, -num_edits:], edits, requests)
        raw = np.concatenate([plain, logits[:, -num_edits:]], axis=1, dtype=np.float32)
        logits = np.concatenate([plain, edited], axis=1, dtype=np.float32)
    if masks is not None:
        logits = apply_masks(ids, logits, raw, masks)
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
