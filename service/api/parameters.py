"""From a checked body to effective values: what the client left out comes from the settings, what depends on the loaded
model is checked against it, and the seed is drawn.

Also says back what became effective (`generation_settings`). Knows neither routes nor JSON.
"""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from typing import Any, TypeVar

from service.api.errors import invalid_parameter
from service.api.grammars import read_grammar
from service.api.sampler_fields import read_min_tokens, read_stop_token_ids, sampler_params, sampler_settings
from service.api.schemas import Bias, Generation
from service.config import Settings
from service.engine.async_engine import EngineInfo
from service.engine.request import Limits, SamplingParams

T = TypeVar("T")

# A drawn seed is shown to the client, and JavaScript reads integers exactly up to 2^53 only.
DRAWN_SEED_BITS = 53
# Any repeat_penalty above 0 is accepted, but beyond these a penalised logit would leave the range of float32.
LEAST_PENALTY, MOST_PENALTY = 1e-6, 1e6


def read_limits(body: Generation, info: EngineInfo, settings: Settings) -> Limits:
    """The effective limits. Raises ApiError if n_ctx is above the ceiling; n_batch and n_threads are clamped."""
    n_ctx = _given(body.n_ctx, info.n_ctx)
    if n_ctx > info.n_ctx_max:
        message = f"invalid 'n_ctx': should be less than or equal to {info.n_ctx_max}, this server's ceiling"
        raise invalid_parameter("n_ctx", f"{message} (got {n_ctx})")
    n_threads = body.n_threads
    max_tokens = _max_tokens(body, settings)
    stop_token_ids = read_stop_token_ids(body, info)
    return Limits(
        n_ctx=n_ctx,
        n_batch=min(_given(body.n_batch, info.n_batch), info.n_batch),
        n_threads=None if n_threads is None else min(n_threads, info.n_threads),
        max_tokens=min(max_tokens, n_ctx),
        stop=tuple(text for text in body.stop or () if text),
        stop_token_ids=stop_token_ids,
        include_stop=body.include_stop_str_in_output is True,
        min_tokens=read_min_tokens(body, max_tokens, n_ctx),
        end_ids=tuple(dict.fromkeys((*info.eos_ids, *stop_token_ids))),
        cache_prompt=body.cache_prompt is not False,
    )


def _max_tokens(body: Generation, settings: Settings) -> int:
    for wish in (body.n_predict, body.max_completion_tokens, body.max_tokens):
        if wish is not None:
            return wish
    return settings.default_max_tokens


def read_sampling(body: Generation, limits: Limits, info: EngineInfo, settings: Settings) -> SamplingParams:
    """The effective sampling parameters. Raises ApiError."""
    seed = _given(body.seed, settings.default_seed)
    return SamplingParams(
        seed=secrets.randbits(DRAWN_SEED_BITS) if seed == -1 else seed,
        temperature=_given(body.temperature, settings.default_temperature),
        top_k=min(max(_given(body.top_k, settings.default_top_k), 0), info.vocab_size),
        top_p=_given(body.top_p, settings.default_top_p),
        min_p=_given(body.min_p, settings.default_min_p),
        typical_p=_given(body.typical_p, settings.default_typical_p),
        repeat_penalty=_repeat_penalty(body, settings),
        repeat_last_n=_repeat_last_n(body, limits, settings),
        presence_penalty=_given(body.presence_penalty, settings.default_presence_penalty),
        frequency_penalty=_given(body.frequency_penalty, settings.default_frequency_penalty),
        logit_bias=_logit_bias(body, limits, info),
        grammar=read_grammar(body),
        **sampler_params(body, limits, info),
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _repeat_penalty(body: Generation, settings: Settings) -> float:
    penalty = _given(body.repeat_penalty, _given(body.repetition_penalty, settings.default_repeat_penalty))
    return min(max(penalty, LEAST_PENALTY), MOST_PENALTY)


def _repeat_last_n(body: Generation, limits: Limits, settings: Settings) -> int:
    window = body.repeat_last_n
    if window is None:
        window = min(settings.default_repeat_last_n, limits.n_ctx)
    elif window > limits.n_ctx:
        message = f"invalid 'repeat_last_n': should be less than or equal to {limits.n_ctx}, this request's n_ctx"
        raise invalid_parameter("repeat_last_n", f"{message} (got {window})")
    return limits.n_ctx if window == -1 else window


def _logit_bias(body: Generation, limits: Limits, info: EngineInfo) -> tuple[Bias, ...]:
    """Biases of one token add up, and ignore_eos is a bias of minus infinity, as in llama.cpp."""
    total: defaultdict[int, float] = defaultdict(float)
    for token_id, bias in body.logit_bias or ():
        if not 0 <= token_id < info.vocab_size:
            message = f"invalid 'logit_bias': token ids should be from 0 to {info.vocab_size - 1}"
            raise invalid_parameter("logit_bias", f"{message} (got {token_id})")
        total[token_id] += bias
    if body.ignore_eos:
        total |= dict.fromkeys(info.eos_ids, -math.inf)
    forbidden = {token_id for token_id, bias in total.items() if bias == -math.inf}
    if len(forbidden.union(limits.end_ids if limits.min_tokens else ())) == info.vocab_size:
        raise invalid_parameter("logit_bias", "invalid 'logit_bias': it forbids every token there is")
    return tuple(sorted(total.items()))


def generation_settings(params: SamplingParams, limits: Limits, info: EngineInfo) -> dict[str, Any]:
    """What became effective, under llama.cpp's names; a bias of null is minus infinity."""
    return {
        "seed": params.seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "typical_p": params.typical_p,
        "repeat_last_n": params.repeat_last_n,
        "repeat_penalty": params.repeat_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": [
            {"token": token_id, "bias": bias if math.isfinite(bias) else None} for token_id, bias in params.logit_bias
        ],
        **sampler_settings(params, limits),
        "stop": list(limits.stop),
        "max_tokens": limits.max_tokens,
        "n_predict": limits.max_tokens,
        "cache_prompt": limits.cache_prompt,
        "n_ctx": limits.n_ctx,
        "n_batch": limits.n_batch,
        "n_threads": info.n_threads if limits.n_threads is None else limits.n_threads,
    }
