"""POST /completion and /completions: llama.cpp's native objects, whole and as events.

Each event of a stream also carries `choices` with a delta, so that one streaming client reads every route of ours, and
every stream ends with `[DONE]`. Several prompts or choices are answered by an array of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.answer import Answer, Event, failure_of, finish_reason
from service.api.exchange import Family
from service.api.logprobs import Token, Track, entries
from service.api.openapi import Docs, generation_docs
from service.api.prompts import prompts_of
from service.api.schemas import NativeBody
from service.api.shapes.native import NativeCompletion, NativeEvent, NativeLastEvent, SelectedFields
from service.api.tally import Tally
from service.engine.prompt import Prompt
from service.engine.request import Delta

router = APIRouter(tags=["native"])


@dataclass(slots=True)
class NativeAnswer(Answer):
    """`has_new_line`: a line break has been sent. `unsent`: ids of tokens whose event is yet to come."""

    has_new_line: bool = False
    unsent: list[int] = field(default_factory=list)
    track: Track = field(init=False)

    def __post_init__(self) -> None:
        self.track = Track(self.tokenizer, is_wanted=self.generation.report.logprobs is not None)

    def whole(self, text: str, last: Delta) -> Event:
        self.has_new_line = self.has_new_line or "\n" in text
        token_ids = list(last.token_ids) if self._wishes.return_tokens else []
        return self._selected(self._final(text, token_ids, self.track.take(last), last))

    def join(self, wholes: Sequence[Event], total: Tally) -> Event | list[Event]:  # noqa: ARG002
        return wholes[0] if len(wholes) == 1 else list(wholes)

    def events(self, delta: Delta) -> Iterator[Event]:
        self.has_new_line = self.has_new_line or "\n" in delta.text
        self.unsent += delta.token_ids
        tokens = self.track.take(delta)
        if delta.text:
            yield {
                "index": self.index,
                "content": delta.text,
                "tokens": self.unsent,
                "stop": False,
                "tokens_predicted": delta.num_generated,
                "tokens_evaluated": len(self.generation.prompt_ids),
                **self._probabilities(tokens),
                **self.progress(delta),
                "choices": [{"index": self.index, "delta": {"content": delta.text}, "finish_reason": None}],
            }
            self.unsent, tokens = [], []
        if delta.finish is None or failure_of(delta):
            return
        choice = {"index": self.index, "delta": {}, "finish_reason": finish_reason(delta)}
        yield self._selected({**self._final("", self.unsent, tokens, delta), "choices": [choice]})

    @property
    def _wishes(self) -> NativeBody:
        assert isinstance(self.body, NativeBody)
        return self.body

    def _probabilities(self, tokens: Sequence[Token]) -> Event:
        return {"completion_probabilities": entries(tokens, self.tokenizer)} if self._wishes.n_probs else {}

    def _final(self, text: str, token_ids: list[int], tokens: Sequence[Token], last: Delta) -> Event:
        return {
            "index": self.index,
            "content": text,
            "tokens": token_ids,
            "id": self.id,
            "created": self.created,
            "stop": True,
            "model": self.info.model_id,
            "tokens_predicted": last.num_generated,
            "tokens_evaluated": len(self.generation.prompt_ids),
            "tokens_cached": last.num_cached,
            "generation_settings": self.settings(),
            "prompt": self._wishes.prompt[self.index // (self._wishes.n or 1)],
            "has_new_line": self.has_new_line,
            "truncated": self._ran_out_of_context(last),
            "stop_type": last.stop_kind or "none",
            "stopping_word": last.stopping_word,
            "timings": self.timings(last),
            "usage": self.usage(last),
            **self._probabilities(tokens),
        }

    def _ran_out_of_context(self, last: Delta) -> bool:
        max_tokens = self.generation.limits.max_tokens
        return last.stop_kind == "limit" and (max_tokens < 0 or last.num_generated < max_tokens)

    def _selected(self, answer: Event) -> Event:
        """The keys asked for, under the names they were asked by; those that are not there are left out."""
        if not self._wishes.response_fields:
            return answer
        found = ((path, _lookup(answer, path.split("/"))) for path in self._wishes.response_fields)
        return {path: values[0] for path, values in found if values}


def _lookup(value: Any, keys: Sequence[str]) -> list[Any]:
    """What is found along the keys, as a list of one; [] where there is nothing."""
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return []
        value = value[key]
    return [value]


def prompts(body: NativeBody) -> list[Prompt]:
    return prompts_of(body.prompt)


FAMILY = Family(NativeBody, prompts, NativeAnswer, "cmpl")


def _docs(summary: str) -> Docs:
    events = (NativeEvent, NativeLastEvent, SelectedFields)
    return generation_docs(NativeBody, summary, NativeCompletion, events, listed=True)


@router.post("/completion", **_docs("Continue a text"))
@router.post("/completions", **_docs("Continue a text (another name of /completion)"))
async def completion(request: Request) -> Response:
    return await FAMILY.respond(request)
