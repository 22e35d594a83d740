"""POST /chat/completions and /v1/chat/completions: OpenAI's chat objects, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fastapi import APIRouter, Request, Response

from service.api.answer import Event, failure_of, finish_reason
from service.api.exchange import Family
from service.api.logprobs import Token, entries
from service.api.openai_answer import OpenAIAnswer
from service.api.openapi import Docs, generation_docs
from service.api.schemas import ChatBody, ChatMessage
from service.api.shapes.openai import ChatChunk, ChatCompletion
from service.api.tally import Tally
from service.api.tools import CallWriter, read_calls, read_tools
from service.engine.prompt import ChatPrompt, Message
from service.engine.request import Delta

router = APIRouter(tags=["chat"])


def prompts(body: ChatBody) -> list[ChatPrompt]:
    use = read_tools(body)
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(body.messages)]
    return [ChatPrompt(tuple(messages), use.tools if use else ())]


def _message(message: ChatMessage, place: str) -> Message:
    calls = read_calls(message.tool_calls, place)
    return Message(_role(message), _content(message), calls, message.tool_call_id or "")


def _role(message: ChatMessage) -> str:
    return "system" if message.role == "developer" else message.role


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content)


@dataclass(slots=True)
class ChatAnswer(OpenAIAnswer):
    """calls: where tools may be called. held: tokens whose text may be the beginning of a call."""

    calls: CallWriter | None = field(init=False)
    held: list[Token] = field(default_factory=list)

    def __post_init__(self) -> None:
        OpenAIAnswer.__post_init__(self)  # a slotted dataclass is another class than the one `super` knows
        self.calls = CallWriter() if read_tools(self.wishes) else None

    def whole(self, text: str, last: Delta) -> Event:
        self.scores = last.prompt_logprobs
        message = self.calls.message(text) if self.calls else {"role": "assistant", "content": text}
        choice = {
            "index": self.index,
            "message": message,
            **self._of_tokens(self.track.take(last)),
            "finish_reason": self._finish_reason(last),
        }
        return {
            **self.head("chat.completion"),
            "choices": [choice],
            "usage": self.usage(last),
            **self.of_prompt(),
            **self.extras(last),
        }

    def events(self, delta: Delta) -> Iterator[Event]:
        self.scores += delta.prompt_logprobs
        tokens, progress = [*self.held, *self.track.take(delta)], self.progress(delta)
        if not self.begun and (delta.text or delta.finish):
            self.begun = True
            yield {**self._chunk({"role": "assistant", "content": ""}), **self.of_prompt(), **progress}
        for piece in self._pieces(delta):
            yield {**self._chunk(piece, tokens), **progress}
            tokens = []
        self.held = tokens
        if delta.finish is None or failure_of(delta):
            return
        yield {**self._chunk({}, tokens, self._finish_reason(delta)), **progress, **self.extras(delta)}

    def _pieces(self, delta: Delta) -> Iterator[Event]:
        """What the delta adds to the message."""
        if self.calls:
            yield from self.calls.deltas(delta.text, final=delta.finish is not None)
        elif delta.text:
            yield {"content": delta.text}

    def _finish_reason(self, last: Delta) -> str:
        reason = finish_reason(last)
        return "tool_calls" if reason == "stop" and self.calls and self.calls.has_calls else reason

    def tally(self, last: Delta) -> Tally:
        return replace(OpenAIAnswer.tally(self, last), has_prediction=self.wishes.prediction is not None)

    @property
    def wishes(self) -> ChatBody:
        assert isinstance(self.body, ChatBody)
        return self.body

    @property
    def chunk_name(self) -> str:
        return "chat.completion.chunk"

    def _chunk(self, delta: Event, tokens: Sequence[Token] = (), finish: str | None = None) -> Event:
        choice = {"index": self.index, "delta": delta, **self._of_tokens(tokens), "finish_reason": finish}
        return {**self.head(self.chunk_name), "choices": [choice]}

    def _of_tokens(self, tokens: Sequence[Token]) -> Event:
        """What a choice tells of the tokens that its text is made of."""
        told: Event = {"logprobs": None}
        if self.wishes.logprobs and tokens:
            told["logprobs"] = {"content": entries(tokens, self.tokenizer), "refusal": None}
        if self.wishes.return_token_ids:
            told["token_ids"] = [token.id for token in tokens]
        return told


FAMILY = Family(ChatBody, prompts, ChatAnswer, "chatcmpl")


def _docs(summary: str) -> Docs:
    return generation_docs(ChatBody, summary, ChatCompletion, [ChatChunk])


@router.post("/chat/completions", **_docs("Continue a conversation"))
@router.post("/v1/chat/completions", **_docs("Continue a conversation (OpenAI's path)"))
async def chat_completions(request: Request) -> Response:
    return await FAMILY.respond(request)
