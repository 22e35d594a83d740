"""The bodies of other APIs' chats: OpenAI's Responses and Anthropic's Messages, each in its own names.

They are generations like any other: whatever a generation route of ours takes by our names is honoured here too, and
what only these APIs have and this server has not is refused. Knows neither routes nor answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.errors import not_supported
from service.api.schemas import Generation, Stops, TextPart, read_body, refuse_other_parts, validated
from service.api.unserved import refuse_unserved, show, without_nulls
from service.engine.prompt import ChatPrompt, Message

# What our own chat may serve, and these answers have no place for.
_NO_PLACE: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "logprobs": (False,),
    "n": (1,),
    "n_probs": (0,),
    "prompt_logprobs": (),
    "regex": (),
    "response_fields": (),
    "response_format": ({"type": "text"},),
    "return_tokens": (False,),
    "structured_outputs": (),
    "timings_per_token": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
NEUTRAL_IN_RESPONSES: Mapping[str, tuple[object, ...]] = {
    **_NO_PLACE,
    "background": (False,),
    "conversation": (),
    "include": ([],),
    "max_tokens": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": "none"}),
    "text": ({}, {"format": {"type": "text"}}),
    "truncation": ("disabled",),
}
NEUTRAL_IN_MESSAGES: Mapping[str, tuple[object, ...]] = {
    **_NO_PLACE,
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
    "output_config": ({},),
    "output_format": (),
    "stop": ([],),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
}


def _drop_refused(schema: dict[str, Any]) -> None:
    for name in _NO_PLACE:
        schema["properties"].pop(name, None)


class InputText(BaseModel):
    """Text of an item; what a client sends back of our own output has the type output_text."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["input_text", "output_text"]
    text: str


class InputItem(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["message"] | None = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText], Field(fail_fast=True)]


class ResponsesBody(Generation):
    """POST /v1/responses."""

    model_config = ConfigDict(json_schema_extra=_drop_refused)

    input: str | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)]
    instructions: str | None = Field(None, description="a system message before the input")
    max_tokens: int | None = Field(
        None, ge=1, validation_alias="max_output_tokens", description="most tokens to generate"
    )


class MessageTurn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    role: Literal["user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class Conversation(BaseModel):
    """What both of Anthropic's bodies have."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    system: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    messages: list[MessageTurn] = Field(min_length=1, fail_fast=True)


class MessagesBody(Conversation, Generation):
    """POST /v1/messages."""

    model_config = ConfigDict(json_schema_extra=_drop_refused)

    max_tokens: int = Field(ge=1, description="most tokens to generate")
    stop: Stops | None = Field(
        None, validation_alias="stop_sequences", description="strings that end the output, and are not part of it"
    )


class CountBody(Conversation):
    """POST /v1/messages/count_tokens."""


def read_responses(kind: type[ResponsesBody], raw: Mapping[str, Any]) -> ResponsesBody:
    """The checked body. Raises ApiError."""
    fields = without_nulls(raw)
    refuse_unserved(fields, NEUTRAL_IN_RESPONSES)
    if isinstance(items := fields.get("input"), list):
        fields["input"] = [_item(item, f"input[{i}]") for i, item in enumerate(items)]
    return read_body(kind, fields)


def _item(raw: object, place: str) -> object:
    if not isinstance(raw, dict):
        return raw
    fields = without_nulls(raw)
    kind = fields.get("type", "message")
    if isinstance(kind, str) and kind != "message":
        message = f"'{place}.type': items of type {show(kind)} are not supported, messages only"
        raise not_supported("input", message)
    refuse_other_parts(fields.get("content"), f"{place}.content", ("input_text", "output_text"), "input")
    return fields


def read_messages(kind: type[MessagesBody], raw: Mapping[str, Any]) -> MessagesBody:
    """The checked body. Raises ApiError."""
    return read_body(kind, _conversation(raw))


def read_count(raw: Mapping[str, Any]) -> CountBody:
    """The checked body. Raises ApiError."""
    return validated(CountBody, _conversation(raw))


def _conversation(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without nulls; what is not served is refused."""
    fields = without_nulls(raw)
    refuse_unserved(fields, NEUTRAL_IN_MESSAGES)
    refuse_other_parts(fields.get("system"), "system", ("text",), "system")
    turns = fields.get("messages")
    if not isinstance(turns, list):
        return fields
    for i, turn in enumerate(turns):
        if isinstance(turn, dict):
            refuse_other_parts(turn.get("content"), f"messages[{i}].content", ("text",), "messages")
    if turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        message = (
            f"'messages[{len(turns) - 1}]': going on with an answer that was begun is not supported by this server"
        )
        raise not_supported("messages", message)
    return fields


def responses_prompt(body: ResponsesBody) -> ChatPrompt:
    turns = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return ChatPrompt((*turns, Message("user", body.input)))
    roles = {"developer": "system"}
    turns += [Message(roles.get(item.role, item.role), text_of(item.content)) for item in body.input]
    return ChatPrompt(tuple(turns))


def messages_prompt(body: Conversation) -> ChatPrompt:
    system = text_of(body.system or "")
    turns = [Message("system", system)] if system else []
    return ChatPrompt((*turns, *(Message(turn.role, text_of(turn.content)) for turn in body.messages)))


def text_of(content: str | list[InputText] | list[TextPart]) -> str:
    """The parts of a content as one text."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
