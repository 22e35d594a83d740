"""POST /v1/responses: OpenAI's response objects, whole and as their sequence of named events. Text only.

Nothing is kept: `store` is taken and means nothing, and `previous_response_id` is refused. A stream ends with `[DONE]`,
as every stream here does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from fastapi import APIRouter, Request, Response

from service.api.answer import Answer, Event, failure_of
from service.api.errors import ApiError
from service.api.exchange import Family
from service.api.foreign import ResponsesBody, read_responses, responses_prompt
from service.api.openapi import generation_docs
from service.api.shapes.responses import EVENTS, ResponseObject
from service.engine.request import Delta, FinishReason

router = APIRouter(tags=["responses"])


@dataclass(slots=True)
class ResponsesAnswer(Answer):
    """`texts`: what was sent, since the last events hold all of it; `num_events`: events so far."""

    has_named_events: ClassVar[bool] = True

    texts: list[str] = field(default_factory=list)
    num_events: int = 0

    def whole(self, text: str, last: Delta) -> Event:
        status = _status(last)
        return self._response(status, [self._item(status, [_part(text)])], last)

    def events(self, delta: Delta) -> Iterator[Event]:
        if not self.num_events and (delta.text or delta.finish):
            begun = self._response("in_progress", [], None)
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
            yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
            yield self._event("response.content_part.added", **self._place(), part=_part(""))
        if delta.text:
            self.texts.append(delta.text)
            yield self._event("response.output_text.delta", **self._place(), delta=delta.text, logprobs=[])
        if delta.finish is not None and not failure_of(delta):
            yield from self._end(delta)

    def _end(self, last: Delta) -> Iterator[Event]:
        text, status = "".join(self.texts), _status(last)
        item = self._item(status, [_part(text)])
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{status}", response=self._response(status, [item], last))

    def failure(self, error: ApiError) -> Event:
        detail = error.body["error"]
        named = {name: detail[name] for name in ("code", "message", "param")}
        return self._event("error", **named, error=detail)

    def _event(self, kind: str, **fields: object) -> Event:
        self.num_events += 1
        return {"type": kind, "sequence_number": self.num_events - 1, **fields}

    @property
    def _item_id(self) -> str:
        return f"msg-{self.id.removeprefix('resp-')}"

    def _place(self) -> Event:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, content: list[Event]) -> Event:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, status: str, output: list[Event], last: Delta | None) -> Event:
        assert isinstance(self.body, ResponsesBody)
        params = self.generation.params
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_tokens,
            "model": self.info.model_id,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if last is None else self._usage(last),
            "metadata": {},
        }

    def _usage(self, last: Delta) -> Event:
        usage = self.usage(last)
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


def _status(last: Delta) -> str:
    return "completed" if last.finish is FinishReason.STOP else "incomplete"


def _part(text: str) -> Event:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


FAMILY = Family(ResponsesBody, lambda body: [responses_prompt(body)], ResponsesAnswer, "resp", read_responses)


@router.post(
    "/v1/responses",
    **generation_docs(
        ResponsesBody, "Continue a conversation (OpenAI's Responses)", ResponseObject, EVENTS, named=True
    ),
)
async def responses(request: Request) -> Response:
    return await FAMILY.respond(request)
