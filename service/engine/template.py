"""The chat template of a checkpoint: where it is found, and messages -> text.

Order of search as in transformers: chat_template.jinja beside the tokenizer, then `chat_template` of
tokenizer_config.json, a string or a list of named templates of which "default" is taken. Knows no token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from service.engine.errors import RequestError
from service.engine.prompt import Message
from service.engine.render_budget import MAX_CPU_S, RenderBudget, spending
from service.engine.sandbox import MeteredEnvironment
from service.engine.tools import OPENING, Tool, described

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_CHARS = 2**20
MAX_REASON_CHARS = 300


class TemplateSourceError(ValueError):
    """Why a checkpoint's template cannot be used; the message is one sentence."""


class ChatTemplate:
    """One compiled template. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, max_cpu_s: float = MAX_CPU_S) -> None:
        """special_tokens: what templates call bos_token, eos_token, ... Raises TemplateSourceError."""
        self.source = source
        self._max_cpu_s = max_cpu_s
        self._special_tokens = dict(special_tokens)
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateSourceError(
                f"the chat template has {len(source)} characters, the limit is {MAX_TEMPLATE_CHARS}"
            )
        try:
            with spending(RenderBudget()):
                self._template = MeteredEnvironment().from_string(source)
        except (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise TemplateSourceError(f"the chat template is not valid: {_reason(error)}") from None

    @property
    def takes_tools(self) -> bool:
        """Whether it writes tools and calls itself, in the one spelling of calls that is read again."""
        return OPENING in self.source

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The conversation as text, up to where the model shall go on; tools for a template that takes them.

        Raises RequestError.
        """
        num_chars = sum(len(message.role) + len(message.content) for message in messages)
        num_chars += sum(len(call.arguments) for message in messages for call in message.tool_calls)
        num_chars += sum(len(tool.description) + len(tool.parameters) for tool in tools)
        try:
            with spending(RenderBudget(num_chars, self._max_cpu_s)):
                return self._template.render(
                    messages=[_turn(message) for message in messages],
                    tools=[described(tool) for tool in tools] or None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._special_tokens,
                )
        except Exception as error:  # a template is a program of the checkpoint and may raise anything
            reason = f"the model's chat template does not take these messages: {_reason(error)}"
            raise RequestError(reason, "messages") from error


def find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template's source, None if the checkpoint has none. Raises TemplateSourceError."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        try:
            with file.open(encoding="utf-8") as reader:
                return reader.read(MAX_TEMPLATE_CHARS + 1)
        except (OSError, ValueError) as error:
            raise TemplateSourceError(f"{TEMPLATE_FILE} cannot be read: {error}") from None
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        if "default" not in named:
            raise TemplateSourceError(f"none of the chat templates {sorted(map(str, named))} is named 'default'")
        found = named["default"]
    if found is not None and not isinstance(found, str):
        raise TemplateSourceError("the chat template is neither a text nor a list of named texts")
    return found


def _turn(message: Message) -> dict[str, Any]:
    """A message as templates expect it: arguments of calls as objects, not as text."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:MAX_REASON_CHARS]
