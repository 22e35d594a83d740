"""What /openapi.json says of the routes: bodies, answers, events of streams, and every status with its error.

Routes read their own bodies and write their own answers, so both are described here: the bodies from the classes that
check them, the answers from `shapes`. Knows no routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from service.api.access import OPEN_PATHS
from service.api.schemas import Generation
from service.api.shapes import SHAPES
from service.api.shapes.common import Shape
from service.api.shapes.errors import ErrorObject
from service.api.shapes.native import SelectedFields
from service.config import Settings

Schema = dict[str, Any]
Statuses = dict[int | str, dict[str, Any]]
Docs = dict[str, Any]

_REF = "#/components/schemas/{model}"
# What every route may answer, then what only some do.
_ALWAYS = {
    400: "something in the request is wrong, not supported or does not fit",
    401: "the key is missing or wrong",
    404: "no such route or model",
    405: "wrong method",
    408: "the request did not arrive in time",
    431: "the header is too large",
    500: "the server's own fault",
}
_TOO_LARGE = {413: "the body is too large"}
_UNAVAILABLE = {503: "loading, draining, dead, or the queue is full"}
_UNSERVED = {501: "switched off on this server"}
_HEADERS = {
    401: ("WWW-Authenticate", "Bearer", "string"),
    405: ("Allow", "the methods that this route serves", "string"),
    503: ("Retry-After", "seconds after which to try again", "integer"),
}
_ABOUT = """\
A server for BitNet b1.58 (ternary) language models.

A field that is null is absent; one that nobody knows is ignored; one that is known and not served is a 400. Every
answer that is not a success is the one error object. Every answer has the header `X-Request-Id`, the client's own where
it sent one. A stream ends with the event `[DONE]`; what goes wrong after its first event is an event of its own."""
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the server's --api-key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "the same key"},
}


def ref(model: type[BaseModel]) -> Schema:
    return {"$ref": _REF.format(model=model.__name__)}


def _any_of(models: Iterable[type[BaseModel]]) -> Schema:
    schemas = [ref(model) for model in models]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _errors(reasons: Mapping[int, str], error: type[Shape]) -> Statuses:
    statuses: Statuses = {}
    for status, reason in sorted(reasons.items()):
        statuses[status] = {"description": reason, "content": _json(ref(error))}
        if status in _HEADERS:
            name, about, kind = _HEADERS[status]
            statuses[status]["headers"] = {name: {"description": about, "required": True, "schema": {"type": kind}}}
    return statuses


def get_docs(
    summary: str, answer: type[Shape] | Schema, *, media_type: str = "application/json", can_be_unavailable: bool = True
) -> Docs:
    """Arguments of a router's `get` for a route that answers with this shape, or by this schema."""
    schema = answer if isinstance(answer, dict) else ref(answer)
    success: Statuses = {200: {"description": "done", "content": {media_type: {"schema": schema}}}}
    reasons = _ALWAYS | (_UNAVAILABLE if can_be_unavailable else {})
    return _docs(summary, success | _errors(reasons, ErrorObject))


def html_docs(summary: str) -> Docs:
    """Arguments of a router's `get` for a page."""
    docs = get_docs(summary, {"type": "string"}, media_type="text/html", can_be_unavailable=False)
    return {**docs, "response_class": HTMLResponse}


def head_docs(summary: str, *, can_be_unavailable: bool = True) -> Docs:
    """Arguments of a router's `head`, whose answers are their statuses."""
    reasons = {200: "done"} | _ALWAYS | (_UNAVAILABLE if can_be_unavailable else {})
    docs = _docs(summary, {status: {"description": reason} for status, reason in sorted(reasons.items())})
    return {**docs, "response_class": Response}


def post_docs(body: type[BaseModel], summary: str, answer: type[Shape], *, error: type[Shape] = ErrorObject) -> Docs:
    """Arguments of a router's `post` for a route that answers a body with this shape."""
    return _post_docs(body, summary, {"description": "done", "content": _json(ref(answer))}, error)


def generation_docs(
    body: type[Generation],
    summary: str,
    whole: type[Shape],
    events: Sequence[type[Shape]],
    *,
    listed: bool = False,
    named: bool = False,
    error: type[Shape] = ErrorObject,
) -> Docs:
    """Arguments of a router's `post` for a generation route. `listed`: several answers come as a bare array, and fields
    of one can be selected. `named`: events have their type on a line of its own."""
    schema = ref(whole)
    if listed:
        one = _any_of([whole, SelectedFields])
        schema = {"anyOf": [*one["anyOf"], {"type": "array", "items": one}]}
    about_errors = [] if error in events else [error]
    stream = {"text/event-stream": {"schema": _event([*events, *about_errors], named=named)}}
    success = {
        "description": "the whole answer, or its events where `stream` is true",
        "content": {**_json(schema), **stream},
    }
    return _post_docs(body, summary, success, error)


def unserved_docs(summary: str) -> Docs:
    """Arguments of a router's `post` for a route that is switched off."""
    return {**_docs(summary, _errors(_ALWAYS | _UNSERVED, ErrorObject)), "status_code": 501}


def _event(shapes: Sequence[type[Shape]], *, named: bool) -> Schema:
    """Before OpenAPI 3.2 the schema of a stream is that of each of its events."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": _any_of(shapes)}
    properties: Schema = {"data": {"anyOf": [text, {"const": "[DONE]"}]}}
    if named:
        properties["event"] = {"type": "string", "description": "the `type` of the object in `data`"}
    return {
        "type": "object",
        "description": "One event: `data` is a JSON object as text, in the last event `[DONE]`.",
        "properties": properties,
        "required": ["data"],
    }


def _post_docs(body: type[BaseModel], summary: str, success: Schema, error: type[Shape]) -> Docs:
    reasons = _ALWAYS | _TOO_LARGE | _UNAVAILABLE
    docs = _docs(summary, {200: success, **_errors(reasons, error)})
    return {**docs, "openapi_extra": {"requestBody": {"required": True, "content": _json(ref(body))}}}


def _docs(summary: str, responses: Statuses) -> Docs:
    # Without a model, or the framework would describe (and check) once more what is described here.
    return {"summary": summary, "responses": responses, "response_model": None}


def describe(app: FastAPI, version: str, bodies: Sequence[type[BaseModel]], settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of `app`, with the bodies that its routes read themselves."""
    servers = [{"url": settings.path_prefix or "/"}]
    document = get_openapi(
        title="bitnet-serve", version=version, description=_ABOUT, routes=app.routes, servers=servers
    )
    models = [(model, "validation") for model in (*bodies, *SHAPES)]
    _, schemas = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    document["components"] = {"schemas": schemas["$defs"], "securitySchemes": _SECURITY_SCHEMES}
    needs: list[dict[str, list[str]]] = [{name: []} for name in _SECURITY_SCHEMES]
    document["security"] = needs if settings.api_key is not None else [{}, *needs]
    for path, methods in document["paths"].items():
        if path in OPEN_PATHS:
            for route in methods.values():
                route["security"] = []
                del route["responses"]["401"]
    return document
