"""JSON schemas at random: the kinds that clients write, nested a little, with bounds so that answers come to an end."""

from __future__ import annotations

import random
from typing import Any

WORDS = ["name", "city", "n", "größe", "is_open", "tags", "id", "a b", 'quote"d', "back\\slash"]
PATTERNS = ["^[a-c]{1,4}$", "^(x|yy)+z$", "^[0-9]{3}-[0-9]{4}$"]
FORMATS = ["date", "time", "date-time", "ipv4", "uuid"]


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _boolean, _enum, _const, _formatted, _patterned]
    if depth:
        kinds += [_object, _object, _array, _any_of, _tuple]
    return rng.choice(kinds)(rng, depth - 1)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(8)}


def _patterned(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 10}


def _formatted(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "format": rng.choice(FORMATS)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(-1000, 1000)
    bounds = rng.choice([{"minimum": low}, {"exclusiveMinimum": low}, {}])
    return {"type": "integer", **bounds, rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randrange(2, 5000)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.choice([-1.5, 0, 0.25, 3])
    return {"type": "number", "minimum": low, "maximum": low + rng.choice([0.5, 7, 100.25])}


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["red", "grün", 1, -2.5, None, True, [1, "x"], {"k": []}, ""], rng.randrange(1, 6))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice([*WORDS, 0, None, {"b": [False]}])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randrange(0, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "title": "An object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    return {**schema, "additionalProperties": False if rng.random() < 0.9 else random_schema(rng, 0)}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(3)
    return {"type": "array", "items": random_schema(rng, depth), "minItems": low, "maxItems": low + rng.randrange(3)}


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    items = [random_schema(rng, depth) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randrange(1, 4))]}
