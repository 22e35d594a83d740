"""What the answers of several families have in common: usage, timings, effective settings, scored tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """An object of an answer. A field of `sometimes` may be absent; any other is always there."""

    model_config = ConfigDict(frozen=True)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def sometimes(description: str) -> Any:
    """A field that is absent unless what the description says holds; absent is not null."""
    return Field(None, description=description, json_schema_extra=_without_default)


class CachedTokens(Shape):
    cached_tokens: int = Field(description="of the prompt, taken from the prefix cache")


class PredictedTokens(Shape):
    accepted_prediction_tokens: int = Field(description="guesses of the output's next tokens that were right")
    rejected_prediction_tokens: int = Field(description="and those that were not; neither changes the output")


class Usage(Shape):
    prompt_tokens: int = Field(description="of the prompt as the model read it, cached ones included")
    completion_tokens: int = Field(description="generated, with the one that ended the output")
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: PredictedTokens = sometimes("with prediction")


class Timings(Shape):
    cache_n: int = Field(description="tokens of the prompt that the prefix cache held")
    prompt_n: int = Field(description="tokens of the prompt that were computed")
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    draft_n: int = sometimes("where next tokens were guessed: so many, from what the request says already")
    draft_n_accepted: int = sometimes("where next tokens were guessed: so many were right; they change no output")


class TokenBias(Shape):
    token: int
    bias: float | None = Field(description="null is minus infinity")


class EffectiveSettings(Shape):
    """What became effective of a request's parameters."""

    seed: int = Field(description="the one that was drawn, where none was given")
    temperature: float
    top_k: int = Field(description="0 = off")
    top_p: float
    min_p: float
    typical_p: float
    repeat_last_n: int
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: list[TokenBias]
    samplers: list[str] = Field(description="in the order in which they act")
    min_keep: int
    dynatemp_range: float
    dynatemp_exponent: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: list[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    min_tokens: int
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    stop: list[str]
    max_tokens: int = Field(description="-1 = what n_ctx allows")
    n_predict: int = Field(description="the same as max_tokens")
    cache_prompt: bool
    n_ctx: int
    n_batch: int
    n_threads: int


class GenerationSettings(EffectiveSettings):
    ignore_eos: bool
    n_probs: int
    post_sampling_probs: Literal[False]
    timings_per_token: bool
    stream: bool


class ScoredToken(Shape):
    """A token and its logprob in the model's own distribution, before any sampler."""

    id: int
    token: str = Field(description="its text; U+FFFD where it is no whole character")
    bytes: list[int]
    logprob: float


class ToldToken(ScoredToken):
    top_logprobs: list[ScoredToken] = Field(description="the likeliest in its place, as many as were asked for")


class DeltaText(Shape):
    content: str = sometimes("absent in the last event")


class EventChoice(Shape):
    index: int
    delta: DeltaText
    finish_reason: Literal["stop", "length"] | None
