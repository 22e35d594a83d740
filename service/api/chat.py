"""POST /chat/completions and /v1/chat/completions: OpenAI's chat objects, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response

from service.api.answer import Answer, Event, failure_of, finish_reason
from service.api.exchange import Family
from service.api.openapi import generation_docs
from service.api.schemas import ChatBody, ChatMessage
from service.api.tools import CallWriter, read_calls, read_tools
from service.engine.prompt import ChatPrompt, Message
from service.engine.request import Delta

router = APIRouter(tags=["chat"])


def prompt_of(body: ChatBody) -> ChatPrompt:
    use = read_tools(body)
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(body.messages)]
    return ChatPrompt(tuple(messages), use.tools if use else ())


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
class ChatAnswer(Answer):
    """`begun`: the chunk with the role is sent, together with the first text. `calls`: where tools may be called."""

    begun: bool = False
    calls: CallWriter | None = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.body, ChatBody)
        self.calls = CallWriter() if read_tools(self.body) else None

    def whole(self, text: str, last: Delta) -> Event:
        message = self.calls.message(text) if self.calls else {"role": "assistant", "content": text}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._finish_reason(last),
        }
        return {
            **self.head("chat.completion"),
            "choices": [choice],
            "usage": self.usage(last),
            **self.extras(last),
        }

    def events(self, delta: Delta) -> Iterator[Event]:
        if not self.begun and (delta.text or delta.finish):
            self.begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        if self.calls:
            for piece in self.calls.deltas(delta.text, final=delta.finish is not None):
                yield self._chunk(piece)
        elif delta.text:
            yield self._chunk({"content": delta.text})
        if delta.finish is None or failure_of(delta):
            return
        yield {**self._chunk({}, self._finish_reason(delta)), **self.extras(delta)}
        if self.wants_usage:
            yield {**self.head("chat.completion.chunk"), "choices": [], "usage": self.usage(delta)}

    def _finish_reason(self, last: Delta) -> str:
        reason = finish_reason(last)
        return "tool_calls" if reason == "stop" and self.calls and self.calls.has_calls else reason

    def _chunk(self, delta: Event, finish: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.wants_usage else {}
        return {**self.head("chat.completion.chunk"), "choices": [choice], **usage}


FAMILY = Family(ChatBody, prompt_of, ChatAnswer, "chatcmpl")


@router.post("/chat/completions", **generation_docs(ChatBody, "Continue a conversation"))
@router.post("/v1/chat/completions", **generation_docs(ChatBody, "Continue a conversation (OpenAI's path)"))
async def chat_completions(request: Request) -> Response:
    return await FAMILY.respond(request)
