"""DRY: a token that would go on repeating what was said before is made less likely, the more the longer the repeat.

Where the last n tokens stand earlier in the window too, the token that followed there loses
multiplier * base ** (n - allowed_length), if n is at least allowed_length. No repeat reaches back over a sequence
breaker, and a token with a breaker in it loses nothing. Source: p-e-w, text-generation-webui pull request 5677, as
llama.cpp has it. Knows which logits to change, not where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from service.engine.request import Request

MOST_PENALTY = 1e30
"""A penalty beyond it would leave the range of float32, and so forbid the token."""


def dry_penalties(request: Request) -> dict[int, float]:
    """What the logits of which tokens lose."""
    params, breakers = request.params, request.breakers
    length = request.limits.n_ctx if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
    newest_first = request.token_ids[: -length - 1 : -1]
    most = len(newest_first)
    if breakers is not None:
        most = min(most, breakers.num_since(request.token_ids))
    allowed = params.dry_allowed_length
    if len(newest_first) <= allowed or most < allowed:
        return {}
    longest = dict.fromkeys(newest_first[:-1], 0) if allowed == 0 else {}
    for place, repeat in repeats(newest_first):
        if (repeat := min(repeat, most)) >= allowed:
            follower = newest_first[place - 1]
            longest[follower] = max(repeat, longest.get(follower, 0))
    return {
        token_id: _penalty(repeat - allowed, params.dry_multiplier, params.dry_base)
        for token_id, repeat in longest.items()
        if breakers is None or not breakers.within(token_id)
    }


def repeats(tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each place > 0 where tokens begin as they do at 0, and for how many: (place, length > 0).

    The Z-algorithm (Gusfield 1997), in time linear in their number, that looks only at the places of the first token.
    """
    lengths: dict[int, int] = {}
    left = right = 0  # tokens[left:right] is the repeat found so far that ends last
    for place in _places(tokens[0], tokens):
        length = min(lengths[place - left], right - place) if place < right else 0
        while place + length < len(tokens) and tokens[length] == tokens[place + length]:
            length += 1
        if place + length > right:
            left, right = place, place + length
        lengths[place] = length
        yield place, length


def _places(token_id: int, tokens: Sequence[int]) -> Iterator[int]:
    place = 0
    while True:
        try:
            place = tokens.index(token_id, place + 1)
        except ValueError:
            return
        yield place


def _penalty(exponent: int, multiplier: float, base: float) -> float:
    if base > 1.0:
        exponent = min(exponent, int(math.log(MOST_PENALTY) / math.log(base)))
    return min(multiplier * base**exponent, MOST_PENALTY)
