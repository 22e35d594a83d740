"""POST /v1/completions: OpenAI's text completion objects, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.api.answer import Answer, Event, failure_of, finish_reason
from service.api.exchange import Family
from service.api.openapi import generation_docs
from service.api.schemas import CompletionBody
from service.engine.prompt import TextPrompt, TokenPrompt
from service.engine.request import Delta

router = APIRouter(tags=["completions"])


def prompt_of(body: CompletionBody) -> TextPrompt | TokenPrompt:
    return TextPrompt(body.prompt) if isinstance(body.prompt, str) else TokenPrompt(body.prompt)


@dataclass(slots=True)
class CompletionAnswer(Answer):
    def whole(self, text: str, last: Delta) -> Event:
        return {**self._object(text, finish_reason(last)), "usage": self.usage(last), **self.extras(last)}

    def events(self, delta: Delta) -> Iterator[Event]:
        usage = {"usage": None} if self.wants_usage else {}
        if delta.text:
            yield {**self._object(delta.text, None), **usage}
        if delta.finish is None or failure_of(delta):
            return
        yield {**self._object("", finish_reason(delta)), **usage, **self.extras(delta)}
        if self.wants_usage:
            yield {**self.head("text_completion"), "choices": [], "usage": self.usage(delta)}

    def _object(self, text: str, finish: str | None) -> Event:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {**self.head("text_completion"), "choices": [choice]}


FAMILY = Family(CompletionBody, prompt_of, CompletionAnswer, "cmpl")


@router.post("/v1/completions", **generation_docs(CompletionBody, "Continue a text (OpenAI's shape)"))
async def openai_completions(request: Request) -> Response:
    return await FAMILY.respond(request)
