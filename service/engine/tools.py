"""Functions that a model may call: how they are told to it, how its calls are spelled, and the grammar of an answer.

A call is spelled as Hermes' and Qwen's models learned it:

    <tool_call>
    {"name": "NAME", "arguments": {...}}
    </tool_call>

A chat template that writes `<tool_call>` itself is given the tools; any other is given a system message in plain words
(`instructions`), calls as an assistant's text, and results as a user's. The grammar makes every call one of a known
tool, with arguments that satisfy its schema. Knows no requests and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from service.engine.grammar import JSON_STYLE, Grammar

OPENING, CLOSING = "<tool_call>", "</tool_call>"
HEAD, BETWEEN, TAIL = '\n{"name": "', '", "arguments": ', "}\n" + CLOSING
RESULT = "<tool_response>\n{}\n</tool_response>"


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. parameters: the JSON schema of its arguments, an object's, as text."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in a conversation's history. arguments: a JSON object as text."""

    id: str
    name: str
    arguments: str


ToolChoice: TypeAlias = Literal["auto", "required"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request. auto: an answer is text, calls, or text and then calls; required: calls alone."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = "auto"
    parallel: bool = True


def instructions(tools: Sequence[Tool]) -> str:
    """The system text for templates that know no tools."""
    lines = [json.dumps(described(tool), ensure_ascii=False) for tool in tools]
    return "\n".join(
        [
            "You can call these functions, described as JSON:",
            *lines,
            "To call one, answer with its name and arguments in this form, and with nothing after it:",
            OPENING + HEAD + "NAME" + BETWEEN + "ARGUMENTS" + TAIL,
        ]
    )


def described(tool: Tool) -> dict[str, object]:
    """A tool in OpenAI's form, as templates expect it."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def spelled(call: ToolCall) -> str:
    """A call as the model itself spells it."""
    return OPENING + HEAD + call.name + BETWEEN + call.arguments + TAIL


def tool_grammar(use: ToolUse) -> Grammar:
    """The grammar of an answer."""
    functions = [f"f{place}" for place in range(len(use.tools))]
    more = f"({json.dumps(chr(10) + OPENING)} call)*" if use.parallel else ""
    rules = [f"start: {json.dumps(OPENING)} call {more}"]
    if use.choice == "auto":
        # What is lazy ends at the first opening there is, so that no text can hold one.
        rules = [
            "start: TEXT | opening call " + more,
            f"opening[lazy]: TEXT {json.dumps(OPENING)}",
            "TEXT: /(.|\\n)*/",
        ]
    rules.append("call: " + " | ".join(functions))
    for function, tool in zip(functions, use.tools, strict=True):
        schema = json.dumps({**json.loads(tool.parameters), "x-guidance": JSON_STYLE})
        rules.append(f"{function}: {json.dumps(HEAD + tool.name + BETWEEN)} %json {schema} {json.dumps(TAIL)}")
    return Grammar("lark", "\n".join(rules), "tools")
