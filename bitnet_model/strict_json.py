"""JSON files of a checkpoint, read as what they are: input from a stranger.

Bounds the size before parsing, refuses what Python's parser lets through (NaN, Infinity, duplicate names) and turns its
crashes (deep nesting, enormous integers, broken UTF-8) into one sentence. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]


class JsonError(ValueError):
    """Why a text is not an acceptable JSON object; the message is one sentence without the file name."""


def parse_object(raw: bytes) -> JsonObject:
    """Parse one JSON object. Raises JsonError."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of more than 4300 digits
        raise JsonError(f"is not valid JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise JsonError(f"holds a JSON {type(value).__name__}, not an object")
    return value


def read_object(path: Path, max_bytes: int) -> JsonObject:
    """Read and parse a file of at most `max_bytes`. Raises JsonError, also for a file that cannot be read."""
    if not path.is_file():  # a pipe of that name would block for ever
        raise JsonError("is missing or not a file")
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise JsonError(f"cannot be read ({error.strerror})") from None
    if len(raw) > max_bytes:
        raise JsonError(f"is larger than {max_bytes} bytes")
    return parse_object(raw)


def _unique_names(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1} if len(names) < 1000 else {"many names"})
        raise JsonError(f"names {twice[0][:100]!r} twice in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"holds {name}, which is not JSON")
