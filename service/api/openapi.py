"""What /openapi.json says of routes that read their own bodies: request schemas, answers, and one error object.

The bodies are described from the same classes that check them. Knows no routes.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.api.schemas import ChatBody, CompletionBody, Generation, NativeBody

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[Generation], ...] = (ChatBody, CompletionBody, NativeBody)


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
UNSERVED = _errors({501: "switched off on this server"})


def generation_docs(body: type[Generation], summary: str) -> dict[str, Any]:
    """Arguments of a router's `post` for a generation route."""
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "the whole answer, or its events where `stream` is true",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
    }
    reasons = {400: "something in the request is wrong, not supported or does not fit", 413: "the body is too large"}
    schema = {"$ref": _REF.format(model=body.__name__)}
    return {
        "summary": summary,
        "responses": {**answers, **_errors(reasons), **COMMON, **UNAVAILABLE},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


def describe(app: FastAPI, version: str) -> dict[str, Any]:
    """The OpenAPI document of `app`, with the bodies that its routes read themselves."""
    document = get_openapi(title="bitnet-serve", version=version, summary=app.summary, routes=app.routes)
    _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
    return document
