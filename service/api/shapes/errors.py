"""The error object, and the same as Anthropic's clients read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.api.shapes.common import Shape, sometimes

Code = Literal[
    "context_length_exceeded",
    "draining",
    "engine_dead",
    "grammars_busy",
    "internal_error",
    "invalid_api_key",
    "invalid_json",
    "invalid_parameter",
    "invalid_request",
    "method_not_allowed",
    "model_loading",
    "not_found",
    "not_supported",
    "queue_full",
    "request_timeout",
    "too_large",
    "unavailable",
]


class _Detail(Shape):
    message: str = Field(description="one sentence for a person")
    param: str | None = Field(description="the field at fault, where there is one")
    code: Code
    n_prompt_tokens: int = sometimes("with context_length_exceeded")
    n_ctx: int = sometimes("with context_length_exceeded")


class ErrorDetail(_Detail):
    type: Literal[
        "authentication_error",
        "exceed_context_size_error",
        "invalid_request_error",
        "not_found_error",
        "not_supported_error",
        "server_error",
        "unavailable_error",
    ]


class ErrorObject(Shape):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class AnthropicErrorDetail(_Detail):
    type: Literal[
        "api_error",
        "authentication_error",
        "invalid_request_error",
        "not_found_error",
        "overloaded_error",
        "request_too_large",
    ]


class AnthropicError(Shape):
    """The body of every answer below /v1/messages that is not a success."""

    type: Literal["error"] = sometimes("absent where the request did not arrive as whole HTTP")
    error: AnthropicErrorDetail
