"""The general chain once more, in plain Python: lists of (id, score), no shared code, each sampler as it is defined."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from service.engine.request import Request
from tests.service.engine.sampling_reference import reference_uniform

Pairs = list[tuple[int, float]]
Spell = Callable[[int], bytes]

DRAW, MIROSTAT, XTC = 0, 1, 2


def reference_chain(row: np.ndarray, request: Request, spell: Spell = lambda token_id: b"") -> tuple[int, float | None]:
    """The token that a row of raw logits becomes, and Mirostat's mu after it."""
    p = request.params
    scores = dict(enumerate(np.asarray(row, dtype=np.float32)))
    for token_id, bias in p.logit_bias:
        scores[token_id] = scores[token_id] + np.float32(bias)
    pairs = ranked([(i, float(x)) for i, x in scores.items() if x > -math.inf])
    num_active = 0
    for name in p.samplers:
        is_edit = name in ("penalties", "dry")
        if not acts(name, request) or (p.temperature == 0 and not is_edit):
            continue
        if p.temperature > 0 and p.mirostat and not is_edit and name != "temperature":
            continue
        if name == "xtc":
            pairs = xtc(pairs, request, num_active - num_leading(request))
        else:
            pairs = {
                "penalties": penalties,
                "dry": lambda pairs, request: dry(pairs, request, spell),
                "top_n_sigma": top_n_sigma,
                "top_k": lambda pairs, request: pairs[: max(request.params.top_k, request.params.min_keep)],
                "typ_p": typical,
                "top_p": nucleus,
                "min_p": min_p,
                "temperature": temperature,
            }[name](pairs, request)
        num_active += 1
    if p.temperature == 0:
        return pairs[0][0], None
    if p.mirostat:
        return mirostat(pairs, request)
    return pairs[drawn(pairs, request, DRAW)][0], None


def acts(name: str, request: Request) -> bool:
    p = request.params
    return {
        "penalties": (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) != (1, 0, 0),
        "dry": p.dry_multiplier > 0 and p.dry_penalty_last_n != 0,
        "top_n_sigma": p.top_n_sigma > 0,
        "top_k": p.top_k > 0,
        "typ_p": p.typical_p < 1,
        "top_p": p.top_p < 1,
        "min_p": p.min_p > 0,
        "xtc": p.xtc_probability > 0 and p.xtc_threshold <= 0.5,
        "temperature": p.temperature != 1 or p.dynatemp_range > 0,
    }[name]


def num_leading(request: Request) -> int:
    """How many samplers act before the first that counts as a stage: penalties, dry, or first these and then those."""
    active = [name for name in request.params.samplers if acts(name, request)]
    if active[:2] == ["penalties", "dry"]:
        return 2
    return int(active[:1] in (["penalties"], ["dry"]))


def ranked(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def softmax(pairs: Pairs) -> list[float]:
    weights = relative(pairs)
    total = sum(weights)
    return [weight / total for weight in weights]


def relative(pairs: Pairs) -> list[float]:
    best = max(x for _, x in pairs)
    return [math.exp(x - best) for _, x in pairs]


def drawn(pairs: Pairs, request: Request, draw_index: int) -> int:
    random = reference_uniform(request.params.seed, request.total, request.choice_index, draw_index)
    weights = relative(pairs)
    threshold, reached = random * sum(weights), 0.0
    for place, weight in enumerate(weights):
        reached += weight
        if reached > threshold:
            return place
    return len(pairs) - 1


def penalties(pairs: Pairs, request: Request) -> Pairs:
    p = request.params
    last_n = request.limits.n_ctx if p.repeat_last_n < 0 else p.repeat_last_n
    window = Counter(request.token_ids[max(0, len(request.token_ids) - last_n) :])
    edited = []
    for token_id, score in pairs:
        logit, repeat = np.float32(score), np.float32(p.repeat_penalty)
        if count := window[token_id]:
            logit = logit * repeat if logit <= 0 else logit / repeat
            logit -= np.float32(count) * np.float32(p.frequency_penalty) + np.float32(p.presence_penalty)
        edited.append((token_id, float(logit)))
    return ranked(edited)


def dry(pairs: Pairs, request: Request, spell: Spell) -> Pairs:
    taken = dry_taken(request, spell)
    return ranked([(i, float(np.float32(x) - np.float32(taken.get(i, 0.0)))) for i, x in pairs])


def dry_taken(request: Request, spell: Spell) -> dict[int, float]:
    """By brute force: each earlier place in the window, and how far back it agrees with the end."""
    p, tokens = request.params, request.token_ids
    words = [word.encode() for word in p.dry_sequence_breakers]
    last_n = request.limits.n_ctx if p.dry_penalty_last_n < 0 else p.dry_penalty_last_n
    window = tokens[max(0, len(tokens) - last_n) :]
    most = min(len(window), tokens_since_break(tokens, words, spell))
    if len(window) <= p.dry_allowed_length:
        return {}
    taken: dict[int, float] = {}
    for end in range(1, len(window)):
        length = 0
        while length < min(end, most) and window[end - 1 - length] == window[-1 - length]:
            length += 1
        follower = window[end]
        if length >= p.dry_allowed_length and not any(word in spell(follower) for word in words):
            penalty = p.dry_multiplier * p.dry_base ** min(length - p.dry_allowed_length, 60)
            taken[follower] = max(taken.get(follower, 0.0), min(penalty, 1e30))
    return taken if most >= p.dry_allowed_length else {}


def tokens_since_break(tokens: Sequence[int], words: Sequence[bytes], spell: Spell) -> int:
    """Every place of every word in the whole text, and the token that its last byte is in."""
    text = b"".join(spell(token) for token in tokens)
    owner = [place for place, token in enumerate(tokens) for _ in spell(token)]
    ends = [
        owner[at + len(word) - 1] + 1 for word in words for at in range(len(text)) if text[at : at + len(word)] == word
    ]
    return len(tokens) - max(ends, default=0)


def top_n_sigma(pairs: Pairs, request: Request) -> Pairs:
    scores = [x for _, x in pairs]
    mean = sum(scores) / len(scores)
    sigma = math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores))
    kept = [pair for pair in pairs if pair[1] >= scores[0] - request.params.top_n_sigma * sigma]
    return pairs[: max(len(kept), request.params.min_keep)]


def typical(pairs: Pairs, request: Request) -> Pairs:
    probs = softmax(pairs)
    entropy = -sum(q * math.log(q) for q in probs if q > 0)
    surprise = [-math.log(q) if q > 0 else math.inf for q in probs]
    kept, reached = set(), 0.0
    for place in sorted(range(len(pairs)), key=lambda place: abs(surprise[place] - entropy)):
        kept.add(place)
        reached += probs[place]
        if reached > request.params.typical_p and len(kept) >= request.params.min_keep:
            break
    return [pair for place, pair in enumerate(pairs) if place in kept]


def nucleus(pairs: Pairs, request: Request) -> Pairs:
    reached = 0.0
    for place, prob in enumerate(softmax(pairs)):
        reached += prob
        if reached >= request.params.top_p and place + 1 >= request.params.min_keep:
            return pairs[: place + 1]
    return pairs


def min_p(pairs: Pairs, request: Request) -> Pairs:
    p = request.params
    return [pair for i, pair in enumerate(pairs) if math.exp(pair[1] - pairs[0][1]) >= p.min_p or i < p.min_keep]


def xtc(pairs: Pairs, request: Request, stage: int) -> Pairs:
    p = request.params
    if reference_uniform(p.seed, request.total, request.choice_index, XTC + stage) >= p.xtc_probability:
        return pairs
    above = [place for place, prob in enumerate(softmax(pairs)) if prob >= p.xtc_threshold]
    if len(above) < 2 or len(pairs) - above[-1] < p.min_keep:
        return pairs
    return pairs[above[-1] :]


def temperature(pairs: Pairs, request: Request) -> Pairs:
    p = request.params
    t = p.temperature
    if p.dynatemp_range > 0:
        if len(pairs) == 1:
            return pairs
        entropy = -sum(q * math.log(q) for q in softmax(pairs) if q > 0)
        low, high = max(0.0, t - p.dynatemp_range), t + p.dynatemp_range
        t = low + (high - low) * (entropy / math.log(len(pairs))) ** p.dynatemp_exponent
    return [(i, x / max(t, 1e-12)) for i, x in pairs]


def mirostat(pairs: Pairs, request: Request) -> tuple[int, float]:
    p, mu, probs = request.params, request.mu, softmax(pairs)
    if p.mirostat == 2:
        num_kept = next((i for i, q in enumerate(probs) if q == 0 or -math.log2(q) > mu), len(pairs))
    elif sum(q > 0 for q in probs) == 1:
        num_kept = 1
    else:
        head = [q for q in probs[:100] if q > 0]
        t = [math.log((i + 2) / (i + 1)) for i in range(len(head) - 1)]
        b = [math.log(head[i] / head[i + 1]) for i in range(len(head) - 1)]
        s = sum(x * y for x, y in zip(t, b, strict=True)) / sum(x * x for x in t)
        num_kept = int(((s - 1) * 2**mu / (1 - len(pairs) ** (1 - s))) ** (1 / s))
    pairs = pairs[: max(num_kept, 1)]
    place = drawn(pairs, request, MIROSTAT)
    surprise = -math.log2(softmax(pairs)[place])
    return pairs[place][0], mu - p.mirostat_eta * (surprise - p.mirostat_tau)
