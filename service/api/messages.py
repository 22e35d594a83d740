"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's message objects, whole and as named events. Text only.

Errors on these routes have Anthropic's shape (see errors.py). A stream ends with `[DONE]`, as every stream here does;
Anthropic's clients look for names and pass over what has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request, Response

from service.api.answer import Answer, Event, failure_of
from service.api.errors import ApiError, anthropic_error
from service.api.exchange import Family, read_request, service_of
from service.api.foreign import CountBody, MessagesBody, messages_prompt, read_count, read_messages
from service.api.openapi import generation_docs, post_docs
from service.api.shapes.errors import AnthropicError
from service.api.shapes.messages import EVENTS, CountedTokens, MessageObject
from service.engine.request import Delta
from service.engine.text_tools import tokenize

router = APIRouter(tags=["messages"])
_STOP_REASONS = {"eos": "end_turn", "word": "stop_sequence"}


@dataclass(slots=True)
class MessagesAnswer(Answer):
    """`begun`: the events that come before the first text are sent."""

    has_named_events: ClassVar[bool] = True

    begun: bool = False

    def whole(self, text: str, last: Delta) -> Event:
        return {**self._message(last), "content": [{"type": "text", "text": text}], **_stop(last)}

    def events(self, delta: Delta) -> Iterator[Event]:
        if not self.begun and (delta.text or delta.finish):
            self.begun = True
            yield {"type": "message_start", "message": self._message(Delta(num_cached=delta.num_cached))}
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        if delta.text:
            text = {"type": "text_delta", "text": delta.text}
            yield {"type": "content_block_delta", "index": 0, "delta": text}
        if delta.finish is None or failure_of(delta):
            return
        yield {"type": "content_block_stop", "index": 0}
        yield {"type": "message_delta", "delta": _stop(delta), "usage": self._usage(delta)}
        yield {"type": "message_stop"}

    def failure(self, error: ApiError) -> Event:
        return anthropic_error(error)

    def _message(self, last: Delta) -> Event:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.info.model_id,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(last),
        }

    def _usage(self, last: Delta) -> Event:
        """Anthropic's input_tokens are those that no cache held."""
        return {
            "input_tokens": len(self.generation.prompt_ids) - last.num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": last.num_cached,
            "output_tokens": last.num_generated,
        }


def _stop(last: Delta) -> Event:
    reason = _STOP_REASONS.get(last.stop_kind or "", "max_tokens")
    return {"stop_reason": reason, "stop_sequence": last.stopping_word or None}


FAMILY = Family(MessagesBody, lambda body: [messages_prompt(body)], MessagesAnswer, "msg", read_messages)


@router.post(
    "/v1/messages",
    **generation_docs(
        MessagesBody,
        "Continue a conversation (Anthropic's Messages)",
        MessageObject,
        EVENTS,
        named=True,
        error=AnthropicError,
    ),
)
async def messages(request: Request) -> Response:
    return await FAMILY.respond(request)


@router.post(
    "/v1/messages/count_tokens",
    **post_docs(CountBody, "Count the tokens of a conversation", CountedTokens, error=AnthropicError),
)
async def count_tokens(request: Request) -> dict[str, int]:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    body = await read_request(request, read_count)
    prompt, n_ctx = messages_prompt(body), engine.info.n_ctx_max
    token_ids = await engine.with_tokenizer(lambda tools: tokenize(prompt, n_ctx, tools))
    return {"input_tokens": len(token_ids)}
