"""The samplers once more, in plain Python: one row at a time, no shared code. And a model that is a table of logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bitnet_model.ops import DecodeFunction, DrawFunction
from service.engine.request import Limits, Request, SamplingParams

MASK = 0xFFFFFFFF


class LogitTable:
    """A model whose hidden state of row r is the number of a line in a table of logits."""

    draw: DrawFunction | None = None
    decode: DecodeFunction | None = None

    def __init__(self, table: np.ndarray) -> None:
        self.table = torch.from_numpy(np.asarray(table, dtype=np.float32))
        self.asked: list[int] = []

    def hidden(self, lines: Sequence[int]) -> Tensor:
        return torch.tensor(lines, dtype=torch.float32)[:, None]

    def logits(self, x: Tensor) -> Tensor:
        return self.table[x[:, 0].long()]

    def top_logits(self, x: Tensor, k: int, extra_ids: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(k)
        logits = self.logits(x)
        ids = torch.stack(
            [torch.from_numpy(np.lexsort((np.arange(len(row)), -row.numpy()))[:k].copy()) for row in logits]
        )
        extra = torch.where(extra_ids >= 0, logits.gather(1, extra_ids.clamp(min=0)), -torch.inf)
        return torch.cat([ids, extra_ids], dim=1), torch.cat([logits.gather(1, ids), extra], dim=1)


def request_of(tokens: Sequence[int], n_ctx: int = 100_000, choice_index: int = 0, **params: object) -> Request:
    params.setdefault("seed", 0)
    return Request(
        "r",
        tuple(tokens),
        SamplingParams(**params),  # type: ignore[arg-type]
        Limits(n_ctx=n_ctx, n_batch=64),
        choice_index,
    )


def reference_token(row: np.ndarray, request: Request) -> int:
    """What the request samples from one row of raw float32 logits."""
    weights = reference_weights(row, request)
    if len(weights) == 1:
        return weights[0][0]
    random = reference_uniform(request.params.seed, request.total, request.choice_index)
    total = sum(weight for _, weight in weights)
    reached = 0.0
    for token_id, weight in weights:
        reached += weight
        if reached > random * total:
            return token_id
    return weights[-1][0]


def reference_weights(row: np.ndarray, request: Request) -> list[tuple[int, float]]:
    """(id, weight) of what may be drawn, likeliest first; a single one where the choice is greedy."""
    p = request.params
    logits = dict(enumerate(np.asarray(row, dtype=np.float32)))
    for token_id, bias in p.logit_bias:
        logits[token_id] = logits[token_id] + np.float32(bias)
    last_n = request.limits.n_ctx if p.repeat_last_n < 0 else p.repeat_last_n
    window = Counter(request.token_ids[max(0, len(request.token_ids) - last_n) :])
    for token_id, count in window.items():
        logit, repeat = logits[token_id], np.float32(p.repeat_penalty)
        logit = logit * repeat if logit <= 0 else logit / repeat
        penalty = np.float32(count) * np.float32(p.frequency_penalty) + np.float32(p.presence_penalty)
        logits[token_id] = logit - penalty
    ranked = sorted(((i, float(x)) for i, x in logits.items() if x > -math.inf), key=lambda pair: (-pair[1], pair[0]))
    if p.temperature == 0:
        return [(ranked[0][0], 1.0)]
    if p.top_k > 0:
        ranked = ranked[: p.top_k]
    if p.typical_p < 1:
        ranked = typical(ranked, p.typical_p)
    if p.top_p < 1:
        ranked = nucleus(ranked, p.top_p)
    if p.min_p > 0:
        best = max(x for _, x in ranked)
        ranked = [(i, x) for i, x in ranked if math.exp(x - best) >= p.min_p]
    best = max(x for _, x in ranked)
    return [(i, math.exp((x - best) / p.temperature)) for i, x in ranked]


def softmax(ranked: list[tuple[int, float]]) -> list[float]:
    best = max(x for _, x in ranked)
    weights = [math.exp(x - best) for _, x in ranked]
    return [weight / sum(weights) for weight in weights]


def typical(ranked: list[tuple[int, float]], p: float) -> list[tuple[int, float]]:
    probs = softmax(ranked)
    entropy = -sum(q * math.log(q) for q in probs if q > 0)
    surprise = [-math.log(q) if q > 0 else math.inf for q in probs]
    order = sorted(range(len(ranked)), key=lambda place: abs(surprise[place] - entropy))
    kept, reached = set(), 0.0
    for place in order:
        kept.add(place)
        reached += probs[place]
        if reached > p:
            break
    return [pair for place, pair in enumerate(ranked) if place in kept]


def nucleus(ranked: list[tuple[int, float]], p: float) -> list[tuple[int, float]]:
    reached = 0.0
    for place, prob in enumerate(softmax(ranked)):
        reached += prob
        if reached >= p:
            return ranked[: place + 1]
    return ranked


def reference_uniform(seed: int, position: int, choice_index: int, draw_index: int = 0) -> float:
    words = reference_philox([position, choice_index, draw_index, 0], [seed & MASK, seed >> 32])
    return ((words[0] << 21) | (words[1] >> 11)) / 2**53


def reference_philox(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c
