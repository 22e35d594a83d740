"""OpenAI's Responses, whole and as their named events. Text only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.api.shapes.common import CachedTokens, Shape
from service.api.shapes.errors import ErrorDetail


class OutputText(Shape):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[Any] = Field(max_length=0)


class OutputMessage(Shape):
    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class IncompleteDetails(Shape):
    reason: Literal["max_output_tokens"]


class TextType(Shape):
    type: Literal["text"]


class TextFormat(Shape):
    format: TextType


class ReasoningTokens(Shape):
    reasoning_tokens: Literal[0]


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class NoMetadata(Shape):
    """What a request sends as metadata is not kept."""


class ResponseObject(Shape):
    id: str
    object: Literal["response"]
    created_at: int = Field(description="seconds since 1970")
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: Literal[True]
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: TextFormat
    tool_choice: Literal["auto"]
    tools: list[Any] = Field(max_length=0)
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None = Field(description="null while it is in progress")
    metadata: NoMetadata


class _Event(Shape):
    sequence_number: int


class ResponseEvent(_Event):
    """The first two events, and the last."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    response: ResponseObject


class OutputItemEvent(_Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: Literal[0]
    item: OutputMessage


class _OfPart(_Event):
    item_id: str
    output_index: Literal[0]
    content_index: Literal[0]


class ContentPartEvent(_OfPart):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText


class TextDeltaEvent(_OfPart):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[Any] = Field(max_length=0)


class TextDoneEvent(_OfPart):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[Any] = Field(max_length=0)


class ResponseErrorEvent(_Event):
    """The last event of a stream that ends before its time."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None
    error: ErrorDetail


EVENTS = (
    ResponseEvent,
    OutputItemEvent,
    ContentPartEvent,
    TextDeltaEvent,
    TextDoneEvent,
    ResponseErrorEvent,
)
