"""One record for each HTTP request: its id, what the routes note about it, and the one summary line at its end.

Outermost of the pure ASGI layers (a layer of `@app.middleware` kind would hide the client's disconnect from the
routes). What no route caught ends here, as a 500 with the error object and one traceback in the log.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError, internal_error
from service.logs import request_id

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CLIENT_GONE = 499  # the log's status of a request whose client left before an answer began (nginx's number)
MAX_PATH_CHARS = 200


@dataclass(slots=True)
class Record:
    """What the summary line says of one request; `status` is 0 until the answer begins. `begun_s`, `first_token_s`:
    seconds of the monotonic clock."""

    id: str
    begun_s: float = field(default_factory=time.monotonic)
    first_token_s: float = 0.0
    status: int = 0
    code: str = ""
    generation: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = ""


class Records:
    """ASGI layer: puts a Record into the request's state, echoes X-Request-Id, logs, and answers 500 for our faults.
    `on_end` is told each request's status."""

    def __init__(self, app: ASGIApp, on_end: Callable[[int], None]) -> None:
        self.app = app
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(_request_id(Headers(scope=scope)))
        scope.setdefault("state", {})["record"] = record
        token = request_id.set(record.id)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.id
            await send(message)

        try:
            await self._serve(scope, receive, send_noted, record)
        finally:
            self.on_end(record.status)
            _summarise(scope, record)
            request_id.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            record.status = record.status or CLIENT_GONE
        except Exception:
            logger.exception("unexpected error")
            error: ApiError = internal_error()
            record.code = error.code
            # An answer that has begun cannot be taken back: the server sees it unfinished and closes the connection.
            if not record.status:
                await error.response(scope["path"])(scope, receive, send)


def _tokens_per_second(record: Record, end_s: float) -> float:
    """Of the tokens after the first; of one token alone, all of the time."""
    later = record.completion_tokens - 1
    since_s = record.first_token_s if later > 0 else record.begun_s
    return max(later, 1) / max(end_s - since_s, 1e-6)


def _request_id(headers: Headers) -> str:
    """The client's own id where it is fit to be echoed and logged, else a fresh one."""
    given = headers.get("x-request-id", "")
    return given if _VALID_ID.fullmatch(given) else uuid.uuid4().hex


def _summarise(scope: MutableMapping[str, Any], record: Record) -> None:
    end_s = time.monotonic()
    fields: dict[str, object] = {
        "method": scope["method"],
        "path": scope["path"][:MAX_PATH_CHARS],
        "status": record.status,
        "ms": round((end_s - record.begun_s) * 1000, 1),
    }
    if record.generation:
        fields |= {
            "generation": record.generation,
            "stream": record.stream,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "finish": record.finish or "none",
        }
    if record.first_token_s:
        fields["ttft_ms"] = round((record.first_token_s - record.begun_s) * 1000, 1)
        fields["tok_s"] = round(_tokens_per_second(record, end_s), 1)
    if record.code:
        fields["code"] = record.code
    # A probe every second is not worth a line each.
    level = logging.DEBUG if "/health" in scope["path"] else logging.INFO
    message = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.log(level, "%s", message, extra={"fields": fields})
