"""The fields by which a request says what its output must obey, and which of them it said.

Structured output is exact or refused: a keyword of JSON Schema that cannot be enforced is a 400, also without `strict`.
Knows neither routes nor how grammars work.
"""

from __future__ import annotations

import json
from typing import Any, Literal

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


class ConstraintFields(BaseModel):
    """At most one of these may ask for something."""

    response_format: ResponseFormat | None = Field(None, description="text, any JSON object, or JSON by a schema")
    json_schema: dict[str, Any] | None = Field(None, description="a JSON schema that the output satisfies")
    grammar: str | None = Field(None, description="a grammar of the output, in GBNF or Lark; empty = none")
    regex: str | None = Field(None, description="a regular expression that the whole output matches; empty = none")


def read_constraint(body: ConstraintFields) -> Grammar | None:
    """The grammar that the body asks for. Raises ApiError for more than one."""
    asked = [
        grammar
        for grammar in (
            _from_response_format(body.response_format),
            None if body.json_schema is None else _of_schema(body.json_schema, "json_schema"),
            _of_grammar(body.grammar, "grammar") if body.grammar else None,
            Grammar("regex", body.regex, "regex") if body.regex else None,
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
        return _of_schema(form.schema_ or json.loads(ANY_OBJECT), "response_format")
    if form.json_schema is None:
        raise invalid_parameter("response_format", "'response_format.json_schema' is required with this type")
    return _of_schema(form.json_schema.schema_, "response_format")


def _of_grammar(text: str, param: str) -> Grammar:
    if "%json" in text:
        raise invalid_parameter(param, f"invalid '{param}': '%json' is not taken here, use 'json_schema'")
    return Grammar("grammar", text, param)


def _of_schema(schema: dict[str, Any], param: str) -> Grammar:
    return Grammar("json_schema", schema_text(schema, param), param)
