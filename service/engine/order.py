"""Which samplers a request's row goes through, in which order, and how many of its logits they have to see.

Penalties and DRY change single logits. Where they come first, in this order, they are applied while the candidates are
ranked, as the fixed chain does it, and the largest logits suffice if top_k is next; whatever else comes first sees the
whole vocabulary. A sampler whose value asks for nothing is left out.

At temperature 0 the largest logit is taken, wherever the temperature stands: only what changes logits still counts.
Mirostat does the work of the samplers that cut (as in llama.cpp), so those are left out too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from service.engine.request import SamplingParams

XTC_USELESS_ABOVE = 0.5
"""No two tokens can both be likelier than this."""

_IS_ACTIVE: Mapping[str, Callable[[SamplingParams], bool]] = {
    "penalties": lambda p: p.repeat_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0,
    "dry": lambda p: p.dry_multiplier > 0.0 and p.dry_penalty_last_n != 0,
    "top_n_sigma": lambda p: p.top_n_sigma > 0.0,
    "top_k": lambda p: p.top_k > 0,
    "typ_p": lambda p: p.typical_p < 1.0,
    "top_p": lambda p: p.top_p < 1.0,
    "min_p": lambda p: p.min_p > 0.0,
    "xtc": lambda p: p.xtc_probability > 0.0 and p.xtc_threshold <= XTC_USELESS_ABOVE,
    "temperature": lambda p: p.temperature != 1.0 or p.dynatemp_range > 0.0,
}
_EDITS = ("penalties", "dry")


@dataclass(frozen=True, slots=True)
class Order:
    """penalties_first, dry_first: applied on ranking; stages: the samplers after that, in order.

    num_candidates: how many of the largest logits the stages need to see; None is all of them.
    """

    penalties_first: bool
    dry_first: bool
    stages: tuple[str, ...]
    num_candidates: int | None


@lru_cache(maxsize=1024)
def order_of(params: SamplingParams) -> Order:
    """What these parameters come to."""
    stages = [name for name in params.samplers if _IS_ACTIVE[name](params)]
    if params.temperature <= 0.0:
        stages = [name for name in stages if name in _EDITS]
    elif params.mirostat:
        stages = [name for name in stages if name in (*_EDITS, "temperature")]
    first = []
    for name in _EDITS:
        if stages[:1] == [name]:
            first.append(stages.pop(0))
    return Order("penalties" in first, "dry" in first, tuple(stages), _num_candidates(params, stages))


def _num_candidates(params: SamplingParams, stages: list[str]) -> int | None:
    if stages[:1] == ["top_k"]:
        return max(params.top_k, params.min_keep)
    if params.temperature <= 0.0 and not stages:
        return 1
    return None
