"""A conversation with tools in it, for chat templates that know none: everything in words.

Knows no templates and no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.engine.prompt import Message
from service.engine.tools import RESULT, Tool, instructions, spelled


def in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The same conversation: tools are told by a system message, calls are text, and results come from the user."""
    told = _told(messages, tools)
    worded: list[Message] = []
    was_result = False
    for message in told:
        is_result = message.role == "tool"
        if is_result:
            text = RESULT.format(message.content)
            if was_result:  # several calls were answered: one turn, for templates that want turns to alternate
                text = f"{worded.pop().content}\n{text}"
            message = Message("user", text)
        elif message.tool_calls:
            parts = [message.content] if message.content else []
            message = Message(message.role, "\n".join([*parts, *map(spelled, message.tool_calls)]))
        worded.append(message)
        was_result = is_result
    return worded


def _told(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    if not tools:
        return list(messages)
    text = instructions(tools)
    if messages and messages[0].role == "system":
        first = replace(messages[0], content=f"{messages[0].content}\n\n{text}")
        return [first, *messages[1:]]
    return [Message("system", text), *messages]
