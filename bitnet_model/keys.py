"""Typed, ranged access to a JSON object from a stranger, where every failure is noted and none stops the reading.

Knows JSON types and ranges, not what the keys mean. Absent and null are the same: the default, where there is one.
"""

from __future__ import annotations

import reprlib
from typing import Any

from bitnet_model.strict_json import JsonObject

_REPR = reprlib.Repr()
_REPR.maxstring = 160  # the names of tensors are long


class Keys:
    """One JSON object; each failure becomes a problem and a harmless stand-in value of the right type."""

    def __init__(self, raw: JsonObject, where: str, problems: list[str]) -> None:
        self.raw = raw
        self.where = where
        self.problems = problems

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer of low to high; missing is a problem where there is no default."""
        value: Any = self.raw.get(name)
        value = default if value is None else value
        if not is_integer(value) or not low <= value <= high:
            self.refuse(name, value, f"an integer of {low} to {high}")
            return low
        return int(value)

    def number(self, name: str, above: float, high: float, default: float) -> float:
        """A finite number above `above` and at most `high`."""
        value: Any = self.raw.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= high:
            self.refuse(name, value, f"a number above {above:g}, at most {high:g}")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value: Any = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
            return default
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value: Any = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            self.refuse(name, value, " or ".join(choices))
            return default
        return value

    def section(self, name: str) -> JsonObject:
        """A nested object, empty when absent."""
        value: Any = self.raw.get(name)
        if value is None or isinstance(value, dict):
            return value or {}
        self.refuse(name, value, "an object")
        return {}

    def refuse(self, name: str, value: Any, wanted: str) -> None:
        """Note a problem with one key."""
        found = "missing" if value is None else brief(value)
        self.problems.append(f"{self.where}: {name} is {found}, wanted {wanted}")


def is_integer(value: Any) -> bool:
    """A JSON integer: bool is one for Python, and not for us."""
    return isinstance(value, int) and not isinstance(value, bool)


def brief(value: Any) -> str:
    """A value for an error message, without room for a flood of text or of brackets."""
    return _REPR.repr(value)
