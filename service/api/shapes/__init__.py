"""The shapes of answers and of events of streams, as /openapi.json describes them.

Descriptions alone: answers are built where their facts are (`chat.py`, `native.py`, ...), as plain objects, and a test
holds every kind of answer of a running server against what is said here. Knows neither routes nor bodies.
"""

from __future__ import annotations

from service.api.shapes import common, errors, messages, native, openai, responses, system

SHAPES: tuple[type[common.Shape], ...] = (
    errors.ErrorObject,
    errors.AnthropicError,
    openai.ChatCompletion,
    openai.ChatChunk,
    openai.TextCompletion,
    openai.TextChunk,
    native.NativeCompletion,
    native.SelectedFields,
    native.NativeEvent,
    native.NativeLastEvent,
    responses.ResponseObject,
    *responses.EVENTS,
    messages.MessageObject,
    *messages.EVENTS,
    messages.CountedTokens,
    system.Health,
    system.ModelCard,
    system.ModelList,
    system.Props,
    system.Slot,
    system.TokenizedText,
    system.DetokenizedText,
    system.RenderedPrompt,
    system.TokenizerInfo,
)
"""All that a route answers with, or sends as an event."""
