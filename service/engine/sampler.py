"""Logits and parameters in, one token id a row out.

The order of the samplers is fixed: logit_bias, penalties, top_k, typical_p, top_p, min_p, temperature, draw. Their
meanings are llama.cpp's: each of the middle ones looks at the probabilities of what its predecessors left, before the
temperature. Temperature 0 takes the largest logit after the penalties; equal logits go to the lower id. A row that asks
for more than this fixed chain is ranked with the others, and then goes through `chain.py` by itself. A row that asks
for less (no typical_p) is drawn by the wing, if it can: the same chain and the same arithmetic, in one call.

A row's token depends on its own logits, parameters and position, not on its company: bias and penalties are fp32,
everything after them is float64, and every sum runs over the candidates one after the other (`np.add.accumulate`),
where a candidate that is cut, or that only pads the row, adds an exact zero.

Knows nothing of the model beyond `LogitSource`, and nothing of text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet_model.batch import DrawBatch
from bitnet_model.ops import DrawFunction
from service.engine import philox
from service.engine.candidates import Candidates, rank
from service.engine.chain import LAST_DRAW, run_chain
from service.engine.cuts import F64, min_p, top_k, top_p, typical_p, weights
from service.engine.draws import draw_arrays, is_drawable
from service.engine.masks import Masks, listed_ids, of_rows, read_masks, short_rows
from service.engine.order import order_of
from service.engine.penalties import NO_ID, Edits, collect_edits
from service.engine.plan import RowResult
from service.engine.request import Request

NOT_FINITE = "the model's logits are not finite numbers"
ALL_BANNED = "logit_bias bans every token"

BANNED_ID = -2
"""A wing's answer for a row whose biases forbid every token; for one gone bad it is NO_ID."""

MAX_TOP = 1024
"""A row that needs more of the largest logits than this is ranked from its whole vocabulary, by itself."""
WIDE_ROWS = 8
"""So many of those rows share one pass over the head; it bounds the memory of their logits."""


class LogitSource(Protocol):
    """What sampling needs of a model; hidden states are f32 [R, H]."""

    @property
    def draw(self) -> DrawFunction | None:
        """Takes hidden states to tokens in one call, where the wing can."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """f32 [R, V]."""
        ...

    def top_logits(self, x: Tensor, k: int, extra_ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 and logits f32, both [R, min(k, V) + E]: the k largest in order, then those of extra_ids [R, E]."""
        ...


def sample(source: LogitSource, hidden: Tensor, requests: Sequence[Request]) -> list[RowResult]:
    """Choose the next token of each request, given its hidden state f32 [R, H]. A bad row fails alone."""
    if source.draw is None:
        return sample_ranked(source, hidden, requests)
    drawn = [row for row, request in enumerate(requests) if is_drawable(request)]
    if len(drawn) == len(requests):
        return draw_rows(source.draw, hidden, requests)
    others = sorted(set(range(len(requests))).difference(drawn))
    results = dict(zip(others, sample_ranked(source, hidden[others], [requests[row] for row in others]), strict=True))
    results |= zip(drawn, draw_rows(source.draw, hidden[drawn], [requests[row] for row in drawn]), strict=True)
    return [results[row] for row in range(len(requests))]


def draw_rows(draw: DrawFunction, hidden: Tensor, requests: Sequence[Request]) -> list[RowResult]:
    """The rows that the wing draws by itself."""
    if not requests:
        return []
    return [drawn_result(token_id) for token_id in draw(hidden, draw_batch(requests)).tolist()]


def draw_batch(requests: Sequence[Request], rounds: int = 1) -> DrawBatch:
    """How the wing draws the next tokens of these requests."""
    return DrawBatch(*map(torch.from_numpy, draw_arrays(requests, rounds)))


def drawn_result(token_id: int) -> RowResult:
    """What the wing's answer for a row means."""
    if token_id >= 0:
        return RowResult(token_id)
    return RowResult(NO_ID, ALL_BANNED if token_id == BANNED_ID else NOT_FINITE)


def sample_ranked(source: LogitSource, hidden: Tensor, requests: Sequence[Request]) -> list[RowResult]:
    """The rows that are drawn here, from what the wing ranks."""
    if not requests:
        return []
    is_finite = finite_rows(hidden)
    limits = [num_candidates(request) for request in requests]
    results = [RowResult(NO_ID, NOT_FINITE)] * len(requests)
    masks, failures = read_masks(requests)
    with np.errstate(all="ignore"):  # rows of NaN, rows of nothing but -inf, and tails that underflow to zero
        for candidates in rank_candidates(source, hidden, requests, limits, masks):
            chosen = choose(candidates, [requests[row] for row in candidates.rows])
            for row, result in zip(candidates.rows, chosen, strict=True):
                if is_finite[row]:
                    results[row] = result
    for row, failure in failures.items():
        results[row] = RowResult(NO_ID, failure, is_grammar=True)
    return results


def rank_candidates(
    source: LogitSource,
    hidden: Tensor,
    requests: Sequence[Request],
    limits: Sequence[int | None],
    masks: Masks | None = None,
) -> list[Candidates]:
    """Rank at least the limits[r] best tokens of each request (None: all), given hidden states f32 [R, H].

    Every request is in one element of the list.
    """
    edits = collect_edits(requests, listed_ids(masks))
    needs = [
        MAX_TOP + 1 if limit is None else limit + num_edits
        for limit, num_edits in zip(limits, edits.per_row(), strict=True)
    ]
    for row, mask in enumerate(masks or ()):
        if mask is not None and mask.listed is not None:
            needs[row] = 1  # all that it may become is among its edits
    narrow = [row for row, need in enumerate(needs) if need <= MAX_TOP]
    wide = [row for row, need in enumerate(needs) if need > MAX_TOP]
    ranked = []
    if narrow:
        x, own, own_requests = _select(narrow, hidden, edits, requests)
        top_ids, top_logits = source.top_logits(x, max(needs[row] for row in narrow), torch.from_numpy(own.ids))
        ids, logits, own_masks = top_ids.cpu().numpy(), top_logits.cpu().numpy(), of_rows(masks, narrow)
        in_order = own.ids.size == 0 and own_masks is None
        candidates = rank(narrow, ids, logits, own, own_requests, in_order=in_order, masks=own_masks)
        if own_masks is not None:
            looked_at = [(needs[row], limits[row] or 0) for row in narrow]
            too_short = [narrow[place] for place in short_rows(own_masks, ids, own.ids, looked_at)]
            candidates = candidates.without(too_short)
            wide += too_short
        ranked = [candidates] if candidates.rows else []
    return ranked + _rank_wide(source, hidden, requests, wide, edits, masks)


def _rank_wide(
    source: LogitSource,
    hidden: Tensor,
    requests: Sequence[Request],
    rows: list[int],
    edits: Edits,
    masks: Masks | None,
) -> list[Candidates]:
    """Rank all tokens of these rows, each by itself."""
    ranked = []
    for start in range(0, len(rows), WIDE_ROWS):
        group = rows[start : start + WIDE_ROWS]
        every = source.logits(hidden[group]).cpu().numpy()
        for place, row in enumerate(group):
            own = edits.of_rows([row])
            ids = np.concatenate([np.arange(every.shape[1])[None, :], own.ids], axis=1)
            logits = every[place, ids]  # NO_ID reads some logit, which its bias of -inf undoes
            own_masks = of_rows(masks, [row])
            ranked.append(rank([row], ids, logits, own, [requests[row]], in_order=False, masks=own_masks))
    return ranked


def _select(
    rows: list[int], hidden: Tensor, edits: Edits, requests: Sequence[Request]
) -> tuple[Tensor, Edits, Sequence[Request]]:
    if len(rows) == len(requests):
        return hidden, edits, requests
    return hidden[rows], edits.of_rows(rows), [requests[row] for row in rows]


def finite_rows(x: Tensor) -> list[bool]:
    """Which rows of [R, H] hold finite numbers only."""
    if math.isfinite(float(x.sum())):
        return [True] * len(x)
    rows: list[bool] = torch.isfinite(x).all(dim=1).tolist()
    return rows


def num_candidates(request: Request) -> int | None:
    """How many of the largest logits a row looks at; None is all of them."""
    params = request.params
    if not request.is_plain:
        return order_of(params).num_candidates
    if params.temperature <= 0.0:
        return 1
    return params.top_k if params.top_k > 0 else None


def choose(candidates: Candidates, requests: Sequence[Request]) -> Iterator[RowResult]:
    """The result of each of these rows."""
    token_ids = candidates.ids[:, 0]
    drawn = [row for row, request in enumerate(requests) if request.is_plain and request.params.temperature > 0.0]
    if len(drawn) == len(requests):
        token_ids = draw(candidates.ids, candidates.logits, requests)
    elif drawn:
        token_ids = token_ids.copy()
        token_ids[drawn] = draw(candidates.ids[drawn], candidates.logits[drawn], [requests[row] for row in drawn])
    is_banned = candidates.logits[:, 0] == -np.inf
    for row, (token_id, finite, banned) in enumerate(
        zip(token_ids.tolist(), candidates.finite.tolist(), is_banned.tolist(), strict=True)
    ):
        if not finite or banned:
            yield RowResult(NO_ID, NOT_FINITE if not finite else ALL_BANNED)
        elif requests[row].is_plain:
            yield RowResult(token_id)
        else:
            chosen_id, mu = run_chain(candidates.ids[row], candidates.logits[row], requests[row])
            yield RowResult(chosen_id, mu=mu)


def draw(ids: NDArray[np.int64], logits: NDArray[np.float32], requests: Sequence[Request]) -> NDArray[np.int64]:
    """Cut the ranked candidates [R, C] of each row and draw one: int64 [R]. Temperatures are above 0."""
    limits, typical, nucleus, minimum, temperature = columns(requests)
    width = int(min(limits.max(), logits.shape[1]))
    scores = top_k(logits[:, :width].astype(np.float64), limits)
    if typical.min() < 1.0:
        scores = typical_p(scores, typical)
    if nucleus.min() < 1.0:
        scores = top_p(scores, nucleus)
    if minimum.max() > 0.0:
        scores = min_p(scores, minimum)
    sums = np.add.accumulate(weights(scores, temperature), axis=1)
    totals = sums[:, -1:]
    randoms = [
        [philox.uniform(request.params.seed, request.total, request.choice_index, LAST_DRAW)] for request in requests
    ]
    # random * total may round up to the total, which no sum exceeds
    threshold = np.minimum(np.array(randoms) * totals, np.nextafter(totals, 0.0))
    place = (sums > threshold).argmax(axis=1)
    chosen: NDArray[np.int64] = ids[np.arange(len(ids)), place]
    return chosen


def columns(requests: Sequence[Request]) -> list[F64]:
    """top_k (infinite where off), typical_p, top_p, min_p and temperature of each row: each float64 [R, 1]."""
    params = [request.params for request in requests]
    rows = [(p.top_k if p.top_k > 0 else np.inf, p.typical_p, p.top_p, p.min_p, p.temperature) for p in params]
    return list(np.array(rows, dtype=np.float64).T[:, :, None])
