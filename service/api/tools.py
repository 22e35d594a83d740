"""OpenAI's tools: the fields of a body, what they ask for, and how calls look in an answer.

Knows no routes. How calls are spelled by the model is the engine's (`service/engine/tools.py`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api.errors import invalid_parameter
from service.api.schema_text import schema_text
from service.api.unserved import show
from service.engine.tool_reader import Arguments, CallBegun, ToolReader, Words
from service.engine.tools import Tool, ToolCall, ToolUse

MAX_TOOLS = 64
MAX_CALLS = 64
MAX_TOOL_BYTES = 48 << 10
"""Of all schemas together. They become one grammar, which has a limit of its own."""
NAME_PATTERN = "^[a-zA-Z0-9_-]{1,64}$"
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class FunctionField(_Strict):
    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of type object; none = no parameters")
    strict: bool | None = Field(None, description="the schema is enforced in any case")


class ToolField(_Strict):
    type: Literal["function"]
    function: FunctionField


class _CalledFunction(_Strict):
    name: str = Field(pattern=NAME_PATTERN)
    arguments: str = Field(description="a JSON object, as text")


class ToolCallField(_Strict):
    """A call in the history."""

    id: str = Field(max_length=128)
    type: Literal["function"] = "function"
    function: _CalledFunction

    def read(self, place: str) -> ToolCall:
        """Raises ApiError unless the arguments are a JSON object."""
        text = self.function.arguments or "{}"
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise invalid_parameter(
                "messages", f"invalid '{place}.function.arguments': should be a JSON object as text"
            )
        return ToolCall(self.id, self.function.name, text)


def _read_choice(value: object) -> object:
    """`none`, `auto`, `required`, or the name of the one function, as a list of that name."""
    match value:
        case "none" | "auto" | "required":
            return value
        case {"type": "function", "function": {"name": str() as name}}:
            return [name]
    raise PydanticCustomError(
        "bad_value", "Input should be 'none', 'auto', 'required', or an object that names one function"
    )


Choice = Annotated[
    Any,
    BeforeValidator(_read_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": "function"},
                        "function": {
                            "type": "object",
                            "properties": {"name": {"type": "string"}},
                            "required": ["name"],
                        },
                    },
                    "required": ["type", "function"],
                },
            ]
        }
    ),
]


class ToolFields(BaseModel):
    tools: list[ToolField] | None = Field(None, max_length=MAX_TOOLS, description="functions the model may call")
    tool_choice: Choice | None = Field(None, description="none, auto, required, or the one function to call")
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")


def read_tools(body: ToolFields) -> ToolUse | None:
    """What the body asks for, None where no tool may be called. Raises ApiError."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise invalid_parameter("tool_choice", "'tool_choice' asks for a call, and there are no 'tools'")
        return None
    tools = [_tool(tool.function, f"tools[{place}].function") for place, tool in enumerate(body.tools)]
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid_parameter("tools", "invalid 'tools': two functions have the same name")
    num_bytes = sum(len(tool.parameters) for tool in tools)
    if num_bytes > MAX_TOOL_BYTES:
        message = f"invalid 'tools': the schemas have {num_bytes} bytes together, the limit is {MAX_TOOL_BYTES}"
        raise invalid_parameter("tools", message)
    if choice == "none":
        return None
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, list):
        tools = [tool for tool in tools if tool.name in choice]
        if not tools:
            raise invalid_parameter(
                "tool_choice", f"'tool_choice' names {show(choice[0])}, which is not one of 'tools'"
            )
        return ToolUse(tuple(tools), "required", parallel=False)
    return ToolUse(tuple(tools), "required" if choice == "required" else "auto", parallel)


def _tool(function: FunctionField, place: str) -> Tool:
    parameters = NO_PARAMETERS if not function.parameters else {"type": "object", **function.parameters}
    if parameters["type"] != "object":
        raise invalid_parameter("tools", f"invalid '{place}.parameters': should be a JSON schema of type object")
    return Tool(function.name, function.description or "", schema_text(parameters, "tools"))


class CallWriter:
    """The `delta` objects of an answer that may hold calls, and at its end the whole message."""

    def __init__(self) -> None:
        self._reader = ToolReader()
        self._words: list[str] = []
        self._calls: list[dict[str, Any]] = []

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    def deltas(self, text: str, *, final: bool) -> Iterator[dict[str, Any]]:
        """What the next text of the answer adds: words, the head of a call, or a piece of its arguments."""
        for piece in self._reader.push(text, final=final):
            match piece:
                case Words(words):
                    self._words.append(words)
                    yield {"content": words}
                case CallBegun(index, name):
                    function = {"name": name, "arguments": ""}
                    self._calls.append(
                        {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
                    )
                    yield {"tool_calls": [{"index": index, **self._calls[-1], "function": dict(function)}]}
                case Arguments(index, arguments):
                    self._calls[index]["function"]["arguments"] += arguments
                    yield {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    def message(self, text: str) -> dict[str, Any]:
        """A whole answer; its content is null where it is calls alone."""
        for _ in self.deltas(text, final=True):
            pass
        words = "".join(self._words)
        if not self._calls:
            return {"role": "assistant", "content": words}
        return {"role": "assistant", "content": words or None, "tool_calls": self._calls}


def read_calls(fields: Sequence[ToolCallField] | None, place: str) -> tuple[ToolCall, ...]:
    """The calls of a message in the history. Raises ApiError."""
    return tuple(call.read(f"{place}.tool_calls[{i}]") for i, call in enumerate(fields or ()))
