"""Anthropic's messages, whole and as their named events. Text only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.api.shapes.common import Shape


class MessageUsage(Shape):
    input_tokens: int = Field(description="of the prompt, without those that the prefix cache held")
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int


class TextBlock(Shape):
    type: Literal["text"]
    text: str


class StopDetails(Shape):
    stop_reason: Literal["end_turn", "stop_sequence", "max_tokens"] | None = Field(description="null at the start")
    stop_sequence: str | None


class MessageObject(StopDetails):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock]
    usage: MessageUsage


class MessageStart(Shape):
    type: Literal["message_start"]
    message: MessageObject


class ContentBlockStart(Shape):
    type: Literal["content_block_start"]
    index: Literal[0]
    content_block: TextBlock


class TextDelta(Shape):
    type: Literal["text_delta"]
    text: str


class ContentBlockDelta(Shape):
    type: Literal["content_block_delta"]
    index: Literal[0]
    delta: TextDelta


class ContentBlockStop(Shape):
    type: Literal["content_block_stop"]
    index: Literal[0]


class MessageDelta(Shape):
    type: Literal["message_delta"]
    delta: StopDetails
    usage: MessageUsage


class MessageStop(Shape):
    type: Literal["message_stop"]


class CountedTokens(Shape):
    input_tokens: int


EVENTS = (MessageStart, ContentBlockStart, ContentBlockDelta, ContentBlockStop, MessageDelta, MessageStop)
