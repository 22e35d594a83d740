"""The `prompt` field: one prompt or several, each of them text, token ids, or both in one array, as llama.cpp reads it.

    "text"                    one prompt
    [1, 2, 3]                 one prompt of token ids
    [1, "a", 2]               one prompt, text and ids one after the other
    ["a", "b"]                two prompts
    [[1, 2], "b", ["c", 3]]   three prompts

Checked and brought into one form here: a tuple of prompts. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.engine.prompt import MixedPrompt, Prompt, TextPrompt, TokenPrompt

PromptValue: TypeAlias = str | tuple[str | int, ...]

_MEANS = "a string, a non-empty array of token ids and strings, or an array of such prompts"


def read_prompts(value: object) -> tuple[PromptValue, ...]:
    """Raises PydanticCustomError."""
    if isinstance(value, list) and value and all(isinstance(item, str | list) for item in value):
        return tuple(_read_prompt(item) for item in value)
    return (_read_prompt(value),)


def _read_prompt(value: object) -> PromptValue:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) or type(item) is int for item in value):
        return tuple(value)
    raise PydanticCustomError("bad_value", "Input {what}", {"what": f"should be {_MEANS}"})


_ONE = [
    {"type": "string"},
    {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}},
]
PromptField = Annotated[
    Any,
    BeforeValidator(read_prompts),
    WithJsonSchema({"anyOf": [*_ONE, {"type": "array", "minItems": 1, "items": {"anyOf": _ONE}}]}),
]


def prompts_of(values: Sequence[PromptValue]) -> list[Prompt]:
    """The prompts as the engine takes them."""
    return [_prompt_of(value) for value in values]


def _prompt_of(value: PromptValue) -> Prompt:
    if isinstance(value, str):
        return TextPrompt(value)
    token_ids = tuple(part for part in value if isinstance(part, int))
    return TokenPrompt(token_ids) if len(token_ids) == len(value) else MixedPrompt(value)
