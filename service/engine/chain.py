"""The general path: one row by itself through whatever order of samplers its request asks for, and Mirostat.

The meanings are llama.cpp's. A sampler looks at the probabilities of what its predecessors left; one that stands in the
order twice acts twice. `min_keep` is the least that a cut leaves (of what there is). Penalties are fp32, all else is
float64, and sums run over the candidates in their order of rank. Random numbers are those of (seed, position, choice),
each use with a draw index of its own, so a row may be run again.

Knows no logits but those it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine import cuts, philox
from service.engine.dry import dry_penalties
from service.engine.mirostat import next_mu, num_kept_by_surprise, num_kept_by_zipf
from service.engine.order import order_of
from service.engine.penalties import penalise, penalty_window
from service.engine.request import Request, SamplingParams

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LAST_DRAW, MIROSTAT_DRAW, FIRST_XTC_DRAW = 0, 1, 2
"""Draw indices; an xtc that is the i-th of the samplers that act (from 0) has FIRST_XTC_DRAW + i."""

LEAST_TEMPERATURE = 1e-12
"""Dividing by less would leave float64, and already here only logits that are equal have a chance beside each other."""


@dataclass(frozen=True, slots=True)
class Row:
    """The candidates that are left, at least one: ids and scores, both [C], by falling score and then rising id."""

    ids: I64
    scores: F64

    def first(self, count: int) -> Row:
        return Row(self.ids[:count], self.scores[:count])


def run_chain(ids: I64, logits: NDArray[np.float32], request: Request) -> tuple[int, float | None]:
    """The token that a row becomes, and its Mirostat state after it (None: it has none).

    ids and logits [C], in order of rank; a candidate of -inf is none, and at least one is finite.
    """
    there = int((logits > -np.inf).sum())
    row = Row(ids[:there], logits[:there].astype(np.float64))
    params = request.params
    for place, name in enumerate(order_of(params).stages):
        row = _xtc(row, request, FIRST_XTC_DRAW + place) if name == "xtc" else STAGES[name](row, request)
    if params.temperature <= 0.0:
        return int(row.ids[0]), None
    if params.mirostat:
        return _draw_by_mirostat(row, request)
    return int(row.ids[_draw(row, request, LAST_DRAW)]), None


def _draw(row: Row, request: Request, draw_index: int) -> int:
    """The place of the candidate that is drawn."""
    sums = np.add.accumulate(cuts.weights(row.scores[None])[0])
    random = philox.uniform(request.params.seed, request.total, request.choice_index, draw_index)
    # random * total may round up to the total, which no sum exceeds
    return int((sums > min(random * sums[-1], np.nextafter(sums[-1], 0.0))).argmax())


def _draw_by_mirostat(row: Row, request: Request) -> tuple[int, float]:
    params = request.params
    num_kept = num_kept_by_zipf if params.mirostat == 1 else num_kept_by_surprise
    row = row.first(num_kept(row.scores, request.mu))
    place = _draw(row, request, MIROSTAT_DRAW)
    prob = float(cuts.probabilities(row.scores)[place])
    return int(row.ids[place]), next_mu(request.mu, prob, params.mirostat_tau, params.mirostat_eta)


def _penalties(row: Row, request: Request) -> Row:
    window = np.array(penalty_window(request), dtype=np.int64)
    counts = np.bincount(window, minlength=int(row.ids.max()) + 1)[row.ids].astype(np.float32)
    return _ranked(row.ids, penalise(row.scores.astype(np.float32)[None], counts[None], [request])[0])


def _dry(row: Row, request: Request) -> Row:
    scores = row.scores.astype(np.float32)
    for token_id, penalty in dry_penalties(request).items():
        scores[row.ids == token_id] -= np.float32(penalty)
    return _ranked(row.ids, scores)


def _ranked(ids: I64, scores: NDArray[np.float32]) -> Row:
    order = np.lexsort((ids, -scores))
    return Row(ids[order], scores[order].astype(np.float64))


def _top_n_sigma(row: Row, request: Request) -> Row:
    """Keep what is within n standard deviations of the largest. Source: Tang et al., "Top-n sigma" (2024)."""
    count = len(row.scores)
    mean = np.add.accumulate(row.scores)[-1] / count
    sigma = np.sqrt(np.add.accumulate((row.scores - mean) ** 2)[-1] / count)
    is_kept = row.scores >= row.scores[0] - request.params.top_n_sigma * sigma
    return row.first(_at_least(int(is_kept.sum()), request.params))


def _top_k(row: Row, request: Request) -> Row:
    return row.first(_at_least(request.params.top_k, request.params))


def _top_p(row: Row, request: Request) -> Row:
    kept = cuts.top_p(row.scores[None], request.params.top_p)[0] > -np.inf
    return row.first(_at_least(int(kept.sum()), request.params))


def _min_p(row: Row, request: Request) -> Row:
    kept = cuts.min_p(row.scores[None], request.params.min_p)[0] > -np.inf
    return row.first(_at_least(int(kept.sum()), request.params))


def _typical_p(row: Row, request: Request) -> Row:
    params = request.params
    kept = cuts.typical_p(row.scores[None], params.typical_p, params.min_keep)[0] > -np.inf
    return Row(row.ids[kept], row.scores[kept])


def _xtc(row: Row, request: Request, draw_index: int) -> Row:
    """Now and then, of the tokens likelier than a threshold drop all but the least likely.

    Source: p-e-w, "Exclude top choices", text-generation-webui pull request 6335.
    """
    params = request.params
    chance = philox.uniform(params.seed, request.total, request.choice_index, draw_index)
    if chance >= params.xtc_probability:
        return row
    num_above = int((cuts.probabilities(row.scores) >= params.xtc_threshold).sum())
    num_dropped = max(num_above - 1, 0)
    if len(row.ids) - num_dropped < params.min_keep:
        return row
    return Row(row.ids[num_dropped:], row.scores[num_dropped:])


def _temperature(row: Row, request: Request) -> Row:
    """Divide by the temperature; with a range, by more the nearer the entropy is to that of equal chances.

    Source: "Hot or cold? Adaptive temperature sampling" (2023), as llama.cpp has it.
    """
    params = request.params
    temperature = params.temperature
    if params.dynatemp_range > 0.0:
        if len(row.scores) == 1:
            return row
        probs = cuts.probabilities(row.scores)
        entropy = -np.add.accumulate(np.where(probs > 0.0, probs * np.log(probs), 0.0))[-1]
        share = min(max(float(entropy / np.log(len(probs))), 0.0), 1.0)
        least, most = max(0.0, temperature - params.dynatemp_range), temperature + params.dynatemp_range
        temperature = least + (most - least) * share**params.dynatemp_exponent
    return Row(row.ids, row.scores / max(temperature, LEAST_TEMPERATURE))


def _at_least(count: int, params: SamplingParams) -> int:
    return max(count, params.min_keep)


STAGES: Mapping[str, Callable[[Row, Request], Row]] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": _top_n_sigma,
    "top_k": _top_k,
    "typ_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "temperature": _temperature,
}
