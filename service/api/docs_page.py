"""The page at /docs: the OpenAPI document made readable, without a script and without the net.

It is written once, from the document that is at /openapi.json, and sent with a policy under which nothing but its own
style sheet counts. Knows no routes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment
from starlette.responses import HTMLResponse, JSONResponse

from service.api.openapi import get_docs, html_docs

router = APIRouter()

FILE = Path(__file__).parent / "page" / "docs.html"
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "maxProperties": "at most {} entries",
}


@router.get("/openapi.json", **get_docs("This document", {"type": "object"}, can_be_unavailable=False))
async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(await asyncio.to_thread(request.app.openapi))


@router.get("/docs", **html_docs("This document, readable"))
async def docs(request: Request) -> HTMLResponse:
    text, headers = await asyncio.to_thread(_page, request.app)
    return HTMLResponse(text, headers=headers)


def _page(app: FastAPI) -> tuple[str, dict[str, str]]:
    """Written the first time; it and the document take some 50 ms each (2 cores, 2026-11), so not on the event loop."""
    if not hasattr(app.state, "docs_page"):
        app.state.docs_page = render_page(app.openapi())
    page: tuple[str, dict[str, str]] = app.state.docs_page
    return page


def render_page(document: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The page and its headers."""
    source = FILE.read_text("utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    schemas = document["components"]["schemas"]
    routes = [
        {**route, "path": path, "method": method.upper(), "body": _body_name(route), "answers": _answers(route)}
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]
    bodies = {
        name: {"about": schemas[name].get("description", ""), "fields": fields_of(schemas[name], schemas)}
        for name in sorted({route["body"] for route in routes if route["body"]})
    }
    answers = {
        name: {"about": schemas[name].get("description", ""), "fields": fields_of(schemas[name], {})}
        for name in sorted(_reached([route["responses"] for route in routes], schemas))
    }
    text = template.render(document=document, routes=routes, bodies=bodies, answers=answers)
    return text, _headers(source)


def _headers(source: str) -> dict[str, str]:
    (style,) = _STYLE.findall(source)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return {
        "Content-Security-Policy": policy + "; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _body_name(route: Mapping[str, Any]) -> str:
    content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]


def _answers(route: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a route answers with: status, when, and the names of its shapes by media type."""
    return [
        {
            "status": status,
            "description": answer["description"],
            "content": {kind: names_in(content) for kind, content in answer.get("content", {}).items()},
        }
        for status, answer in route["responses"].items()
    ]


def names_in(schema: object) -> list[str]:
    """The schemas that are referred to, each once."""
    if isinstance(schema, dict):
        own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
        parts = [own, *map(names_in, schema.values())]
    else:
        parts = list(map(names_in, schema)) if isinstance(schema, list) else []
    return list(dict.fromkeys(name for part in parts for name in part))


def _reached(root: object, schemas: Mapping[str, Any]) -> set[str]:
    """The schemas that are referred to, and those that these refer to, and so on."""
    found: set[str] = set()
    waiting = names_in(root)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += names_in(schemas[name])
    return found


def fields_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of an object: name, whether it is required, type with its limits, description."""
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "required": name in required,
            "type": type_of(field, schemas),
            "about": field.get("description", ""),
        }
        for name, field in schema.get("properties", {}).items()
    ]


def type_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """A schema in a few words. Where it refers to one of `schemas`, that one in its place, and no word of null, which
    means absent in every body; without any, as for an answer, the name of it, and null where it may be null."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return type_of(schemas[name], schemas) if name in schemas else name
    if "anyOf" in schema:
        kinds = [type_of(item, schemas) for item in schema["anyOf"] if not schemas or item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    kind = str(schema.get("type", "any"))
    if kind == "array" and "items" in schema:
        kind = f"array of {type_of(schema['items'], schemas)}"
    elif kind == "object" and "properties" in schema:
        kind = "{" + ", ".join(f"{name}: {type_of(item, schemas)}" for name, item in schema["properties"].items()) + "}"
    limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return f"{kind} ({', '.join(limits)})" if limits else kind
