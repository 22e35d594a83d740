"""Every refusal as an HTTP status and one error object, and the ONE table from the engine's errors to both.

The object is the same on every route and status: `{"error": {"message", "type", "param", "code"}}` plus what a single
condition adds (`n_prompt_tokens`, `n_ctx`); below /v1/messages it stands as Anthropic's clients read it. Knows no other
route. Codes are strings, as OpenAI's clients expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.engine.errors import (
    ContextLengthExceeded,
    Draining,
    EngineDead,
    EngineError,
    GenerationFailed,
    GrammarFailed,
    GrammarsBusy,
    InvalidParameter,
    ModelLoading,
    QueueFull,
    RequestError,
    Unavailable,
)


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of the engine's errors is shown."""

    status: int
    type: str
    code: str


TABLE: Mapping[type[EngineError], Row] = {
    EngineError: Row(500, "server_error", "internal_error"),
    RequestError: Row(400, "invalid_request_error", "invalid_parameter"),
    InvalidParameter: Row(400, "invalid_request_error", "invalid_parameter"),
    ContextLengthExceeded: Row(400, "exceed_context_size_error", "context_length_exceeded"),
    Unavailable: Row(503, "unavailable_error", "unavailable"),
    ModelLoading: Row(503, "unavailable_error", "model_loading"),
    Draining: Row(503, "unavailable_error", "draining"),
    QueueFull: Row(503, "unavailable_error", "queue_full"),
    GrammarsBusy: Row(503, "unavailable_error", "grammars_busy"),
    EngineDead: Row(503, "unavailable_error", "engine_dead"),
    GenerationFailed: Row(500, "server_error", "internal_error"),
    GrammarFailed: Row(400, "invalid_request_error", "invalid_parameter"),
}


class ApiError(Exception):
    """A request that is answered with an error object. `extra` joins the object, `headers` the response."""

    def __init__(
        self,
        status: int,
        type: str,
        code: str,
        message: str,
        *,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": type, "param": param, "code": code, **(extra or {})}
        }

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])

    def response(self, path: str = "") -> JSONResponse:
        """The whole answer, in the shape that clients of this path read."""
        body = anthropic_error(self) if path.startswith(ANTHROPIC_PATH) else self.body
        return JSONResponse(body, self.status, self.headers)


ANTHROPIC_PATH = "/v1/messages"
# Anthropic's names; a type that it has itself stays, and what is left is its api_error.
_ANTHROPIC_TYPES = {404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}
_ANTHROPIC_OWN = ("invalid_request_error", "authentication_error")


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """The error object as Anthropic's clients know it, with our `param`, `code` and the rest in it."""
    detail = error.body["error"]
    own = detail["type"] if detail["type"] in _ANTHROPIC_OWN else "api_error"
    if error.status == 400:
        own = "invalid_request_error"
    return {"type": "error", "error": {**detail, "type": _ANTHROPIC_TYPES.get(error.status, own)}}


def invalid_json(message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", "invalid_json", message)


def invalid_parameter(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", "invalid_parameter", message, param=param)


def not_supported(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", "not_supported", message, param=param)


def too_large(status: int, message: str) -> ApiError:
    """413 for a body, 431 for a header."""
    return ApiError(status, "invalid_request_error", "too_large", message)


def internal_error() -> ApiError:
    """Our own fault; what went wrong is for the log, not for the client."""
    return ApiError(500, "server_error", "internal_error", "the server met an unexpected error; its log says more")


def from_engine(error: EngineError) -> ApiError:
    """The row of `TABLE` for this error's class, or of the nearest class above it."""
    row = next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, ContextLengthExceeded):
        extra = {"n_prompt_tokens": error.n_prompt_tokens, "n_ctx": error.n_ctx}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    param = error.param if isinstance(error, RequestError) else None
    return ApiError(row.status, row.type, row.code, str(error), param=param, extra=extra, headers=headers)


def from_http(error: HTTPException, method: str) -> ApiError:
    """The routing layer's own refusals: no such route, wrong method."""
    if error.status_code == 404:
        return ApiError(404, "not_found_error", "not_found", "there is no such route")
    if error.status_code == 405:
        message = f"this route does not serve {method}"
        return ApiError(405, "invalid_request_error", "method_not_allowed", message, headers=error.headers)
    if error.status_code < 500:
        return ApiError(error.status_code, "invalid_request_error", "invalid_parameter", str(error.detail))
    return internal_error()


async def answer_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    request.state.record.code = error.code
    return error.response(request.scope["path"])


async def answer_engine_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EngineError)
    return await answer_api_error(request, from_engine(error))


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return await answer_api_error(request, from_http(error, request.method))
