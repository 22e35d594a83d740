"""The web page at `/`: one file without a build step, sent with a policy under which nothing else can run or be asked.

Scripts and styles are allowed by the hashes of exactly those in the file, requests to this server alone. The page is
open even where the server asks for a key, since the page is where a person types it. Knows nothing of what it does.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from service.api.exchange import service_of
from service.api.openapi import head_docs, html_docs
from service.config import Settings

router = APIRouter()

FILE = Path(__file__).parent / "page" / "index.html"
PLACEHOLDER = '<meta name="bitnet-server" content="{}">'
SHOWN_DEFAULTS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "seed",
)
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@router.head("/", **head_docs("The web page", can_be_unavailable=False))
@router.get("/", **html_docs("The web page"))
async def page(request: Request) -> HTMLResponse:
    text = _text()
    content = html.escape(json.dumps(facts(service_of(request).settings)))
    shown = text.replace(PLACEHOLDER, PLACEHOLDER.replace("{}", content), 1)
    return HTMLResponse(shown, headers=_headers())


def facts(settings: Settings) -> dict[str, object]:
    """What the page is told about this server: whether it asks for a key, and what a silent request gets."""
    return {
        "needs_key": settings.api_key is not None,
        "defaults": {name: getattr(settings, f"default_{name}") for name in SHOWN_DEFAULTS},
    }


@cache
def _text() -> str:
    text = FILE.read_text("utf-8")
    assert text.count(PLACEHOLDER) == 1
    return text


@cache
def _headers() -> dict[str, str]:
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(_text()):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(hashes["script"]),
        "style-src": " ".join(hashes["style"]),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
