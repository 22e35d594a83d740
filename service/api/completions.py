"""POST /v1/completions: OpenAI's text completion objects, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.api.answer import Event, failure_of, finish_reason
from service.api.exchange import Family
from service.api.logprobs import Token, legacy, prompt_tokens, text_of
from service.api.openai_answer import OpenAIAnswer
from service.api.openapi import generation_docs
from service.api.prompts import prompts_of
from service.api.schemas import CompletionBody
from service.api.shapes.openai import TextChunk, TextCompletion
from service.engine.prompt import Prompt
from service.engine.request import Delta

router = APIRouter(tags=["completions"])


def prompts(body: CompletionBody) -> list[Prompt]:
    return prompts_of(body.prompt)


@dataclass(slots=True)
class CompletionAnswer(OpenAIAnswer):
    def whole(self, text: str, last: Delta) -> Event:
        self.scores = last.prompt_logprobs
        choice = self._choice(self.echoed + text, self._echoed_tokens(), self.track.take(last), finish_reason(last))
        return {
            **self.head(self.chunk_name),
            "choices": [{**choice, **self.of_prompt()}],
            "usage": self.usage(last),
            **self.extras(last),
        }

    def events(self, delta: Delta) -> Iterator[Event]:
        self.scores += delta.prompt_logprobs
        tokens, progress = self.track.take(delta), self.progress(delta)
        failed = failure_of(delta) is not None
        if not self.begun and (delta.text or (delta.finish and not failed)):
            self.begun = True
            if self.wishes.echo or self.of_prompt():
                yield self._chunk({**self._choice(self.echoed, self._echoed_tokens()), **self.of_prompt()}, progress)
        if delta.text:
            yield self._chunk(self._choice(delta.text, (), tokens), progress)
            tokens = []
        if delta.finish is not None and not failed:
            yield {**self._chunk(self._choice("", (), tokens, finish_reason(delta)), progress), **self.extras(delta)}

    @property
    def wishes(self) -> CompletionBody:
        assert isinstance(self.body, CompletionBody)
        return self.body

    @property
    def chunk_name(self) -> str:
        return "text_completion"

    @property
    def echoed(self) -> str:
        """The prompt, where it is to be echoed: as it was sent, or what its tokens spell."""
        if not self.wishes.echo:
            return ""
        prompt = self.wishes.prompt[self.index // (self.wishes.n or 1)]
        return prompt if isinstance(prompt, str) else text_of(self.generation.prompt_ids, self.tokenizer)

    def _echoed_tokens(self) -> list[Token]:
        if not self.wishes.echo or self.wishes.logprobs is None:
            return []
        return list(prompt_tokens(self.generation.prompt_ids, self.scores, self.echoed, self.tokenizer))

    def _chunk(self, choice: Event, progress: Event) -> Event:
        return {**self.head(self.chunk_name), "choices": [choice], **progress}

    def _choice(
        self, text: str, echoed: Sequence[Token] = (), tokens: Sequence[Token] = (), finish: str | None = None
    ) -> Event:
        """One choice with the tokens that its text is made of: the prompt's, then its own."""
        choice: Event = {"index": self.index, "text": text, "logprobs": None, "finish_reason": finish}
        if self.wishes.logprobs is not None:
            choice["logprobs"] = legacy([*echoed, *tokens], self.tokenizer, self.wishes.logprobs)
        if self.wishes.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
        return choice


FAMILY = Family(CompletionBody, prompts, CompletionAnswer, "cmpl")


@router.post(
    "/v1/completions",
    **generation_docs(CompletionBody, "Continue a text (OpenAI's shape)", TextCompletion, [TextChunk]),
)
async def openai_completions(request: Request) -> Response:
    return await FAMILY.respond(request)
