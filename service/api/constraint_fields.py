"""The fields by which a request says what its output must obey, and which of them it said.

Structured output is exact or refused: a keyword of JSON Schema that cannot be enforced is a 400, also without `strict`.
Knows neither routes nor how grammars work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.errors import invalid_parameter
from service.api.schema_text import schema_text
from service.engine.grammar import Grammar

ANY_OBJECT = '{"type": "object"}'


class NamedSchema(BaseModel):
    """OpenAI's wrapping of a schema."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    name: str | None = Field(None, pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="the schema is enforced in any case")


class ResponseFormat(BaseModel):
    """What kind of text the answer is."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="with type json_schema")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="with type json_object")


Choices = Annotated[list[str], Field(min_length=1)]


class StructuredOutputs(BaseModel):
    """vLLM's wrapping of all of these."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON schema, perhaps as text")
    json_object: bool | None = Field(None, description="any JSON object")
    regex: str | None = None
    choice: Choices | None = Field(None, description="texts of which the output is one")
    grammar: str | None = None
    structural_tag: None = Field(None, description="not supported")
    whitespace_pattern: None = Field(None, description="not supported")


NOTHING_WRAPPED = StructuredOutputs.model_validate({})


class ConstraintFields(BaseModel):
    """At most one of these may ask for something."""

    response_format: ResponseFormat | None = Field(None, description="text, any JSON object, or JSON by a schema")
    json_schema: dict[str, Any] | None = Field(None, description="a JSON schema that the output satisfies")
    grammar: str | None = Field(None, description="a grammar of the output, in GBNF or Lark; empty = none")
    regex: str | None = Field(None, description="a regular expression that the whole output matches; empty = none")
    structured_outputs: StructuredOutputs | None = Field(None, description="the same, in vLLM's form")
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's older name of json_schema")
    guided_regex: str | None = Field(None, description="vLLM's older name of regex")
    guided_choice: Choices | None = Field(None, description="texts of which the output is one")
    guided_grammar: str | None = Field(None, description="vLLM's older name of grammar")


def read_constraint(body: ConstraintFields) -> Grammar | None:
    """The grammar that the body asks for. Raises ApiError for more than one."""
    wrapped = body.structured_outputs or NOTHING_WRAPPED
    asked = [
        grammar
        for grammar in (
            _from_response_format(body.response_format),
            _of_schema(body.json_schema, "json_schema"),
            _of_grammar(body.grammar, "grammar"),
            _of_regex(body.regex, "regex"),
            _of_schema(wrapped.json_, "structured_outputs"),
            _of_schema(ANY_OBJECT if wrapped.json_object else None, "structured_outputs"),
            _of_regex(wrapped.regex, "structured_outputs"),
            _of_choice(wrapped.choice, "structured_outputs"),
            _of_grammar(wrapped.grammar, "structured_outputs"),
            _of_schema(body.guided_json, "guided_json"),
            _of_regex(body.guided_regex, "guided_regex"),
            _of_choice(body.guided_choice, "guided_choice"),
            _of_grammar(body.guided_grammar, "guided_grammar"),
        )
        if grammar is not None
    ]
    if len(asked) > 1:
        first, second = asked[0].param, asked[1].param
        raise invalid_parameter(second, f"'{second}' cannot be combined with '{first}': one of them decides the output")
    return asked[0] if asked else None


def _from_response_format(form: ResponseFormat | None) -> Grammar | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return _of_schema(form.schema_ or ANY_OBJECT, "response_format")
    if form.json_schema is None:
        raise invalid_parameter("response_format", "'response_format.json_schema' is required with this type")
    return _of_schema(form.json_schema.schema_, "response_format")


def _of_regex(text: str | None, param: str) -> Grammar | None:
    return Grammar("regex", text, param) if text else None


def _of_choice(texts: Sequence[str] | None, param: str) -> Grammar | None:
    if texts is None:
        return None
    return Grammar("lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts), param)


def _of_grammar(text: str | None, param: str) -> Grammar | None:
    if not text:
        return None
    if "%json" in text:
        raise invalid_parameter(param, f"invalid '{param}': '%json' is not taken here, use 'json_schema'")
    return Grammar("grammar", text, param)


def _of_schema(schema: dict[str, Any] | str | None, param: str) -> Grammar | None:
    if schema is None:
        return None
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            schema = None
        if not isinstance(schema, dict):
            raise invalid_parameter(param, f"invalid '{param}': should be a JSON schema, an object or its text")
    return Grammar("json_schema", schema_text(schema, param), param)
