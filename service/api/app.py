"""The ASGI application: routers, error handlers and the layers in front of them.

Reading order of a request: records (id, log line, last resort), path prefix, header rules, hosts, CORS, key, then the
routes. The engine and the settings are handed in; nothing is loaded here, and importing this module loads no torch.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from service.api import (
    chat,
    completions,
    docs_page,
    messages,
    native,
    responses,
    status,
    system,
    tokens,
    web_page,
)
from service.api.access import AllowedHosts, ApiKey, Cors, HeaderRules, PathPrefix
from service.api.errors import ApiError, answer_api_error, answer_engine_error, answer_http_error
from service.api.exchange import Service, StreamTimes
from service.api.foreign import CountBody, MessagesBody, ResponsesBody
from service.api.openapi import describe
from service.api.record import Records
from service.api.schemas import ChatBody, CompletionBody, NativeBody
from service.api.tokens import DetokenizeBody, TokenizeBody
from service.config import Settings
from service.engine.async_engine import AsyncEngine
from service.engine.errors import EngineError
from service.metrics import Metrics

API_VERSION = "1"
FAMILIES = (system, chat, completions, native, responses, messages, tokens, status, docs_page)
BODIES = (ChatBody, CompletionBody, NativeBody, ResponsesBody, MessagesBody, CountBody, TokenizeBody, DetokenizeBody)


class Application(FastAPI):
    """FastAPI whose document describes the bodies that the routes read themselves."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, API_VERSION, BODIES, self.state.service.settings)
        return self.openapi_schema


def create_app(engine: AsyncEngine, settings: Settings, times: StreamTimes | None = None) -> FastAPI:
    """The application over one engine, which somebody else starts and stops."""
    app = Application(
        # The framework's pages load their scripts from the net; docs_page.py has one that needs nothing.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            ApiError: answer_api_error,
            EngineError: answer_engine_error,
            HTTPException: answer_http_error,
        },
    )
    engine.observer = metrics = Metrics(engine.stats)
    app.state.service = Service(engine, settings, times or StreamTimes(), metrics)
    for family in (*FAMILIES, web_page) if settings.ui else FAMILIES:
        app.include_router(family.router)
    _add_layers(app, settings, metrics)
    return app


def _add_layers(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Innermost first: each layer added stands in front of those before it."""
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key.get_secret_value())
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    if settings.allowed_hosts:
        app.add_middleware(AllowedHosts, hosts=settings.allowed_hosts)
    app.add_middleware(HeaderRules, max_bytes=settings.max_header_bytes)
    if settings.path_prefix:
        app.add_middleware(PathPrefix, prefix=settings.path_prefix)
    app.add_middleware(Records, on_end=metrics.answered)
