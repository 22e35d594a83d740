"""The page at /docs: the OpenAPI document made readable, without a script and without the net.

It is written once, from the document that is at /openapi.json, and sent with a policy under which nothing but its own
style sheet counts. Knows no routes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment
from starlette.responses import HTMLResponse

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


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    app = request.app
    if not hasattr(app.state, "docs_page"):
        app.state.docs_page = render_page(app.openapi())
    text, headers = app.state.docs_page
    return HTMLResponse(text, headers=headers)


def render_page(document: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The page and its headers."""
    source = FILE.read_text("utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    schemas = document["components"]["schemas"]
    routes = [
        {**route, "path": path, "method": method.upper(), "body": _body_name(route)}
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]
    bodies = {
        name: {"about": schemas[name].get("description", ""), "fields": fields_of(schemas[name], schemas)}
        for name in sorted({route["body"] for route in routes if route["body"]})
    }
    text = template.render(document=document, routes=routes, bodies=bodies)
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


def fields_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of a body: name, whether it is required, type with its limits, description."""
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
    """A schema in a few words. Null, which means absent everywhere, is not among them."""
    if "$ref" in schema:
        return type_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        kinds = [type_of(item, schemas) for item in schema["anyOf"] if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", "any"))
    if kind == "array" and "items" in schema:
        kind = f"array of {type_of(schema['items'], schemas)}"
    elif kind == "object" and "properties" in schema:
        kind = "{" + ", ".join(f"{name}: {type_of(item, schemas)}" for name, item in schema["properties"].items()) + "}"
    limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return f"{kind} ({', '.join(limits)})" if limits else kind
