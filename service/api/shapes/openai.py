"""OpenAI's chats and texts, whole and in chunks, with what ours have beside OpenAI's keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.api.shapes.common import GenerationSettings, Shape, Timings, ToldToken, Usage, sometimes

_IDS = "with return_token_ids"


class _Head(Shape):
    id: str
    created: int = Field(description="seconds since 1970")
    model: str
    system_fingerprint: str


class PromptScore(Shape):
    logprob: float
    rank: int = Field(description="1 = the likeliest")
    decoded_token: str


PromptScores = list[dict[str, PromptScore] | None]
_PROMPT = "with prompt_logprobs: one object for each token of the prompt, by id; null for the first"


class CalledFunction(Shape):
    name: str
    arguments: str = Field(description="a JSON object as text; it satisfies the schema of the tool")


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shape):
    role: Literal["assistant"]
    content: str | None = Field(description="null beside calls alone")
    tool_calls: list[ToolCall] = sometimes("where tools are called")


class ChatLogprobs(Shape):
    content: list[ToldToken]
    refusal: None


class ChatChoice(Shape):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    token_ids: list[int] = sometimes(_IDS)
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptScores = sometimes(_PROMPT)
    prompt_token_ids: list[int] = sometimes(_IDS)
    timings: Timings
    generation_settings: GenerationSettings


class FunctionPiece(Shape):
    name: str = sometimes("at the head of a call")
    arguments: str = Field(description="the next piece of a JSON object as text")


class ToolCallPiece(Shape):
    index: int
    id: str = sometimes("at the head of a call")
    type: Literal["function"] = sometimes("at the head of a call")
    function: FunctionPiece


class MessagePiece(Shape):
    role: Literal["assistant"] = sometimes("in the first chunk of a choice")
    content: str = sometimes("where the chunk has text; empty in the first")
    tool_calls: list[ToolCallPiece] = sometimes("where tools are called")


class ChatChunkChoice(Shape):
    index: int
    delta: MessagePiece
    logprobs: ChatLogprobs | None
    token_ids: list[int] = sometimes(_IDS)
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class _Chunk(_Head):
    usage: Usage | None = sometimes("with stream_options; null before the last chunk unless it is continuous")
    timings: Timings = sometimes("in the last chunk of a choice; with timings_per_token in each")
    generation_settings: GenerationSettings = sometimes("in the last chunk of a choice")


class ChatChunk(_Chunk):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(description="one; none in the chunk of include_usage")
    prompt_logprobs: PromptScores = sometimes(_PROMPT)
    prompt_token_ids: list[int] = sometimes(_IDS)


class LegacyLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for the first token of a prompt")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="the character at which each token begins")


class _TextChoice(Shape):
    index: int
    text: str
    logprobs: LegacyLogprobs | None
    token_ids: list[int] = sometimes(_IDS)
    prompt_logprobs: PromptScores = sometimes(_PROMPT)
    prompt_token_ids: list[int] = sometimes(_IDS)


class TextChoice(_TextChoice):
    finish_reason: Literal["stop", "length"]


class TextCompletion(_Head):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage
    timings: Timings
    generation_settings: GenerationSettings


class TextChunkChoice(_TextChoice):
    finish_reason: Literal["stop", "length"] | None


class TextChunk(_Chunk):
    object: Literal["text_completion"]
    choices: list[TextChunkChoice] = Field(description="one; none in the chunk of include_usage")
