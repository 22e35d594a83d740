"""What /openapi.json says of routes that read their own bodies: request schemas, answers, and one error object.

The bodies are described from the same classes that check them. Knows no routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.api.schemas import Generation

_REF = "#/components/schemas/{model}"
_FAULTS = {400: "something in the request is wrong, not supported or does not fit", 413: "the body is too large"}

# Before OpenAPI 3.2 the schema of a stream is that of each of its events.
_EVENT = {
    "type": "object",
    "description": "One event: `data` is a JSON object as text, in the last event `[DONE]`.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


class ErrorDetail(BaseModel):
    """`param` names the field at fault, where there is one."""

    message: str
    type: str
    param: str | None
    code: str
    n_prompt_tokens: int | None = Field(None, description="with context_length_exceeded")
    n_ctx: int | None = Field(None, description="with context_length_exceeded")


class ErrorObject(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def _errors(reasons: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorObject, "description": reason} for status, reason in reasons.items()}


# What every route may answer.
COMMON = _errors(
    {
        401: "the key is missing or wrong",
        404: "no such route or model",
        405: "wrong method",
        431: "the header is too large",
        500: "the server's own fault",
    }
)
UNAVAILABLE = _errors({503: "loading, draining, dead, or the queue is full; Retry-After says when to try again"})
BAD_QUERY = _errors({400: "a parameter of the query is wrong"})
UNSERVED = _errors({501: "switched off on this server"})


def generation_docs(body: type[Generation], summary: str, *, listed: bool = False) -> dict[str, Any]:
    """Arguments of a router's `post` for a generation route; `listed`: several answers come as a bare array."""
    whole: dict[str, Any] = {"type": "object"}
    if listed:
        whole = {"anyOf": [whole, {"type": "array", "items": whole}]}
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "the whole answer, or its events where `stream` is true",
            "content": {
                "application/json": {"schema": whole},
                "text/event-stream": {"schema": _EVENT},
            },
        },
    }
    return _docs(body, summary, answers)


def answer_docs(body: type[BaseModel], summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a router's `post` for a route that answers with an object of these properties."""
    schema = {"type": "object", "properties": answer, "required": list(answer)}
    return _docs(body, summary, {200: {"description": "done", "content": {"application/json": {"schema": schema}}}})


def _docs(body: type[BaseModel], summary: str, answers: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=body.__name__)}
    return {
        "summary": summary,
        "responses": {**answers, **_errors(_FAULTS), **COMMON, **UNAVAILABLE},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


def describe(app: FastAPI, version: str, bodies: Sequence[type[BaseModel]], prefix: str) -> dict[str, Any]:
    """The OpenAPI document of `app`, with the bodies that its routes read themselves; its paths are below `prefix`."""
    servers = [{"url": prefix or "/"}]
    document = get_openapi(
        title="bitnet-serve", version=version, summary=app.summary, routes=app.routes, servers=servers
    )
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    return document
