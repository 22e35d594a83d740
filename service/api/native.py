"""POST /completion and /completions: llama.cpp's native objects, whole and as events.

Each event of a stream also carries `choices` with a delta, so that one streaming client reads every route of ours, and
every stream ends with `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.api.answer import Answer, Event, failure_of, finish_reason
from service.api.completions import prompt_of
from service.api.exchange import Family
from service.api.openapi import generation_docs
from service.api.schemas import CompletionBody
from service.engine.request import Delta

router = APIRouter(tags=["native"])


@dataclass(slots=True)
class NativeAnswer(Answer):
    """`has_new_line`: a line break has been sent."""

    has_new_line: bool = False

    def whole(self, text: str, last: Delta) -> Event:
        self.has_new_line = self.has_new_line or "\n" in text
        return self._final(text, last)

    def events(self, delta: Delta) -> Iterator[Event]:
        self.has_new_line = self.has_new_line or "\n" in delta.text
        if delta.text:
            yield {
                "index": 0,
                "content": delta.text,
                "tokens": [],
                "stop": False,
                "tokens_predicted": delta.num_generated,
                "tokens_evaluated": len(self.generation.prompt_ids),
                "choices": [{"index": 0, "delta": {"content": delta.text}, "finish_reason": None}],
            }
        if delta.finish is None or failure_of(delta):
            return
        yield {
            **self._final("", delta),
            "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason(delta)}],
        }

    def _final(self, text: str, last: Delta) -> Event:
        assert isinstance(self.body, CompletionBody)
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "id": self.id,
            "created": self.created,
            "stop": True,
            "model": self.info.model_id,
            "tokens_predicted": last.num_generated,
            "tokens_evaluated": len(self.generation.prompt_ids),
            "tokens_cached": last.num_cached,
            "generation_settings": self.settings(),
            "prompt": self.body.prompt,
            "has_new_line": self.has_new_line,
            "truncated": self._ran_out_of_context(last),
            "stop_type": last.stop_kind or "none",
            "stopping_word": last.stopping_word,
            "timings": self.timings(last),
            "usage": self.usage(last),
        }

    def _ran_out_of_context(self, last: Delta) -> bool:
        max_tokens = self.generation.limits.max_tokens
        return last.stop_kind == "limit" and (max_tokens < 0 or last.num_generated < max_tokens)


FAMILY = Family(CompletionBody, prompt_of, NativeAnswer, "cmpl")


@router.post("/completion", **generation_docs(CompletionBody, "Continue a text"))
@router.post("/completions", **generation_docs(CompletionBody, "Continue a text (another name of /completion)"))
async def completion(request: Request) -> Response:
    return await FAMILY.respond(request)
