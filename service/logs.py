"""Log lines, as text or JSON: one request id on each, one line each whatever a client sends, never a prompt.

The request id travels in a context variable, so that every line written while a request is served carries it.
Knows no HTTP.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# Libraries that write a line per event, or the text of events (sse_starlette at debug), and never need to.
_QUIET = {
    "uvicorn.error": logging.WARNING,
    "sse_starlette": logging.INFO,
    "asyncio": logging.INFO,
    "httpx": logging.WARNING,
}
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROL |= {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def set_up_logs(form: Literal["text", "json"], level: str, stream: TextIO | None = None) -> None:
    """Send every logger's lines to `stream` (standard error by default), from `level` upwards."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def one_line(text: str) -> str:
    """`text` with its control characters written as escapes, so that it cannot end a line and forge the next."""
    return text.translate(_CONTROL)


class TextLines(logging.Formatter):
    """`time LEVEL logger [request id] message`; a traceback's lines are indented, so that none passes for a line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        line = f"{time} {record.levelname} {record.name} [{request_id.get()}] {one_line(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line = "\n    ".join([line, *(one_line(item) for item in trace)])
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII; what a caller passes as `extra={"fields": {...}}` joins it."""

    def format(self, record: logging.LogRecord) -> str:
        item: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        item |= getattr(record, "fields", {})
        if record.exc_info:
            item["traceback"] = self.formatException(record.exc_info)
        return json.dumps(item, default=str)
