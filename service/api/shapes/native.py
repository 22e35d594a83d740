"""llama.cpp's native completions, whole and as events."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from service.api.shapes.common import (
    EventChoice,
    GenerationSettings,
    Shape,
    Timings,
    ToldToken,
    Usage,
    sometimes,
)

_PROBS = "with n_probs: the tokens of this content"


class NativeCompletion(Shape):
    """A completion; several prompts or choices are answered by an array of them."""

    index: int = Field(description="which of the prompts and choices")
    content: str
    tokens: list[int] = Field(description="ids of the output; empty without return_tokens")
    id: str
    created: int = Field(description="seconds since 1970")
    stop: Literal[True]
    model: str
    tokens_predicted: int
    tokens_evaluated: int = Field(description="of the prompt, cached ones included")
    tokens_cached: int
    generation_settings: GenerationSettings
    prompt: str | list[int | str] = Field(description="as it was sent")
    has_new_line: bool
    truncated: bool = Field(description="the context ended the output")
    stop_type: Literal["none", "eos", "limit", "word"]
    stopping_word: str = Field(description="the stop string that ended the output, or empty")
    timings: Timings
    usage: Usage
    completion_probabilities: list[ToldToken] = sometimes(_PROBS)


class SelectedFields(Shape):
    """With response_fields: the keys that were asked for, under the names they were asked by, and no other."""

    model_config = ConfigDict(extra="allow")


class NativeEvent(Shape):
    index: int
    content: str
    tokens: list[int] = Field(description="ids since the event before")
    stop: Literal[False]
    tokens_predicted: int = Field(description="so far")
    tokens_evaluated: int
    completion_probabilities: list[ToldToken] = sometimes(_PROBS)
    usage: Usage | None = sometimes("with stream_options; null unless it is continuous")
    timings: Timings = sometimes("with timings_per_token")
    choices: list[EventChoice] = Field(description="the content once more, as clients of chats read it")


class NativeLastEvent(NativeCompletion):
    """The last event of a prompt or choice; its content is empty."""

    choices: list[EventChoice]
