"""From the bytes of a body to one JSON object, or a 400 or 413 that says what is wrong with it.

The stock path of the framework answers 500 to `{"temperature": NaN}` and to lone surrogates, and reads bodies of any
size; so bodies are read and parsed here. Whatever the content type, a body is JSON: `curl -d` sends a form type.
Knows nothing of fields.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from starlette.requests import Request

from service.api.errors import ApiError, invalid_json, invalid_parameter, too_large

# A lone surrogate can only come from an escape: raw ones are not UTF-8.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD]")


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises ApiError (413) where it is declared to be, or turns out, too large; ClientDisconnect."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    return too_large(413, f"the request body exceeds the limit of {max_bytes} bytes")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body: UTF-8 without a byte order mark, numbers finite, strings encodable.

    Raises ApiError.
    """
    numbers = _Numbers()
    try:
        value = json.loads(raw.decode("utf-8"), parse_float=numbers.read, parse_constant=numbers.read)
    except UnicodeDecodeError:
        raise invalid_json("the request body is not UTF-8 text") from None
    except RecursionError:
        raise invalid_json("the request body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise invalid_json(f"the request body is not valid JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # the interpreter's own limit on the digits of an integer
        raise invalid_json("the request body holds a number with too many digits") from None
    if not isinstance(value, dict):
        raise invalid_json(f"the request body must be a JSON object, not {_kind(value)}")
    # The walk costs as much as the parse, and nearly every body can do without.
    if not numbers.finite or _SURROGATE_ESCAPE.search(raw):
        for name, item in value.items():
            _refuse_bad_values(name, item)
    return value


class _Numbers:
    """Reads the parser's floats, and remembers whether one was NaN, Infinity, or 1e400, which becomes infinite."""

    def __init__(self) -> None:
        self.finite = True

    def read(self, text: str) -> float:
        number = float(text)
        self.finite = self.finite and math.isfinite(number)
        return number


def _kind(value: object) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _refuse_bad_values(name: str, value: object) -> None:
    """Refuse what Python's parser lets through anywhere inside a field: lone surrogates and infinite numbers."""
    pending: list[object] = [name, value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if not item.isascii() and not _encodable(item):
                raise invalid_parameter(_shown(name), f"'{_shown(name)}' holds text that is not valid Unicode")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise invalid_parameter(_shown(name), f"'{_shown(name)}' holds a number that is not finite")
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name[:64].encode("ascii", "backslashreplace").decode()
