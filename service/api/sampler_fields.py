"""What a request may ask of sampling beyond the two tables of the API reference, under llama.cpp's and vLLM's names.

Their types and ranges, and what becomes effective of them. A silent request gets the defaults of `SamplingParams`, in
which none of them does anything. Knows neither routes nor JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api.errors import invalid_parameter
from service.engine.async_engine import EngineInfo
from service.engine.request import SAMPLERS, Limits, SamplingParams

MAX_SAMPLERS = 32
MAX_BREAKERS = 16
MAX_BREAKER_CHARS = 40
MAX_STOP_TOKENS = 64

_LETTERS = dict(zip("edskypmxt", SAMPLERS, strict=True))
_OTHER_NAMES = {"typical_p": "typ_p"}


def _read_samplers(value: object) -> object:
    """An order as names, or as a string of llama.cpp's letters: names."""
    if not isinstance(value, str | list):
        raise _fault("should be an array of names of samplers, or a string of their letters")
    if len(value) > MAX_SAMPLERS:
        raise _fault(f"should have at most {MAX_SAMPLERS} samplers, not {len(value)}")
    if isinstance(value, str):
        if unknown := set(value) - _LETTERS.keys():
            raise _fault(f"should be of the letters {''.join(_LETTERS)}, without '{min(unknown)}'")
        return tuple(_LETTERS[letter] for letter in value)
    names = [_OTHER_NAMES.get(name, name) if isinstance(name, str) else None for name in value]
    if not all(name in SAMPLERS for name in names):
        raise _fault(f"should be of {', '.join(SAMPLERS)}")
    return tuple(names)


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("bad_value", "Input {what}", {"what": message})


SamplerOrder = Annotated[
    Any,
    BeforeValidator(_read_samplers),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "maxItems": MAX_SAMPLERS, "items": {"enum": [*SAMPLERS, *_OTHER_NAMES]}},
                {"type": "string", "maxLength": MAX_SAMPLERS, "pattern": f"^[{''.join(_LETTERS)}]*$"},
            ]
        }
    ),
]
Breaker = Annotated[str, Field(min_length=1, max_length=MAX_BREAKER_CHARS)]


class SamplerFields(BaseModel):
    """The fields; each is named as in `SamplingParams` or, from ignore_eos on, says what ends the output."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    samplers: SamplerOrder | None = Field(None, description="order of the samplers; one that is left out does not act")
    min_keep: int | None = Field(None, ge=0, description="least number of tokens that a cut leaves")
    dynatemp_range: float | None = Field(None, ge=0, le=2, description="temperature +- this, by entropy; 0 = off")
    dynatemp_exponent: float | None = Field(None, ge=0, le=10, description="how the entropy enters")
    top_n_sigma: float | None = Field(None, ge=-1, le=100, description="standard deviations kept; <= 0 = off")
    xtc_probability: float | None = Field(None, ge=0, le=1, description="how often top choices are excluded; 0 = off")
    xtc_threshold: float | None = Field(None, ge=0, le=1, description="what a top choice is; above 0.5 = off")
    dry_multiplier: float | None = Field(None, ge=0, le=100, description="penalty for going on repeating; 0 = off")
    dry_base: float | None = Field(None, ge=1, le=100, description="growth of that penalty with the length")
    dry_allowed_length: int | None = Field(None, ge=0, description="tokens that may be repeated without")
    dry_penalty_last_n: int | None = Field(None, ge=-1, description="tokens looked back at for repeats; -1 = n_ctx")
    dry_sequence_breakers: list[Breaker] | None = Field(
        None, max_length=MAX_BREAKERS, fail_fast=True, description="strings that no repeat reaches back over"
    )
    mirostat: int | None = Field(None, ge=0, le=2, description="version of Mirostat, which then cuts alone; 0 = off")
    mirostat_tau: float | None = Field(None, ge=0, le=100, description="surprise aimed at, in bits")
    mirostat_eta: float | None = Field(None, ge=0, le=10, description="how fast Mirostat learns")
    ignore_eos: bool | None = Field(None, description="forbid the tokens that the model ends with")
    min_tokens: int | None = Field(None, ge=0, description="so many tokens end nothing")
    stop_token_ids: list[int] | None = Field(
        None, max_length=MAX_STOP_TOKENS, fail_fast=True, description="tokens that end the output, beside the model's"
    )
    include_stop_str_in_output: bool | None = Field(None, description="what ended the output is part of it")


NAMES = tuple(name for name in SamplerFields.model_fields if name in SamplingParams.__dataclass_fields__)


def sampler_params(body: SamplerFields, limits: Limits, info: EngineInfo) -> Mapping[str, Any]:
    """Those of the effective `SamplingParams` that are asked for here. Raises ApiError."""
    asked = {name: value for name in NAMES if (value := getattr(body, name)) is not None}
    look_back = asked.get("dry_penalty_last_n", -1)
    if look_back > limits.n_ctx:
        message = f"should be less than or equal to {limits.n_ctx}, this request's n_ctx"
        raise invalid_parameter("dry_penalty_last_n", f"invalid 'dry_penalty_last_n': {message} (got {look_back})")
    asked["dry_penalty_last_n"] = limits.n_ctx if look_back == -1 else look_back
    if "min_keep" in asked:
        asked["min_keep"] = min(asked["min_keep"], info.vocab_size)
    if "dry_allowed_length" in asked:
        asked["dry_allowed_length"] = min(asked["dry_allowed_length"], limits.n_ctx)
    if "dry_sequence_breakers" in asked:
        asked["dry_sequence_breakers"] = tuple(asked["dry_sequence_breakers"])
    return asked


def sampler_settings(params: SamplingParams, limits: Limits) -> Mapping[str, Any]:
    """What became effective of the fields, for `generation_settings`."""
    values = {name: getattr(params, name) for name in NAMES}
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        "min_tokens": limits.min_tokens,
        "stop_token_ids": list(limits.stop_token_ids),
        "include_stop_str_in_output": limits.include_stop,
    }


def read_stop_token_ids(body: SamplerFields, info: EngineInfo) -> tuple[int, ...]:
    """Without what is there twice. Raises ApiError for an id outside the vocabulary."""
    for token_id in body.stop_token_ids or ():
        if not 0 <= token_id < info.vocab_size:
            message = f"invalid 'stop_token_ids': token ids should be from 0 to {info.vocab_size - 1}"
            raise invalid_parameter("stop_token_ids", f"{message} (got {token_id})")
    return tuple(dict.fromkeys(body.stop_token_ids or ()))


def read_min_tokens(body: SamplerFields, max_tokens: int, n_ctx: int) -> int:
    """Raises ApiError where so many may never be generated. max_tokens: -1 for as many as n_ctx allows."""
    min_tokens = body.min_tokens or 0
    most, what = (n_ctx, "n_ctx") if max_tokens < 0 else (max_tokens, "max_tokens")
    if min_tokens > most:
        message = f"invalid 'min_tokens': should be less than or equal to {most}, this request's {what}"
        raise invalid_parameter("min_tokens", f"{message} (got {min_tokens})")
    return min_tokens
