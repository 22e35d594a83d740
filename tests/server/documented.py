"""Answers of a running server held against its own OpenAPI document.

Stricter than the document in one point: a key that no shape describes is a fault here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
from jsonschema import Draft202012Validator

Route = tuple[str, str]


class Documented:
    """The document of the server at `url`; `met`: the shapes that a checked answer was found to have."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.document: dict[str, Any] = httpx.get(url + "/openapi.json", headers=headers, timeout=20).json()
        self._components = copy.deepcopy(self.document["components"])
        for schema in self._components["schemas"].values():
            if schema["type"] == "object":
                schema["additionalProperties"] = False
        self.met: set[str] = set()
        self._validators: dict[str, Draft202012Validator] = {}

    def routes(self) -> list[Route]:
        """(method, path) of every operation, methods in small letters."""
        return [(method, path) for path, methods in self.document["paths"].items() for method in methods]

    def statuses(self, route: Route) -> set[int]:
        method, path = route
        return set(map(int, self.document["paths"][path][method]["responses"]))

    def check(self, route: Route, response: httpx.Response) -> None:
        """The status, the headers, the media type and the body are as the document says of this route."""
        method, path = route
        where = f"{method} {path} {response.status_code}"
        answers = self.document["paths"][path][method]["responses"]
        assert str(response.status_code) in answers, where
        answer = answers[str(response.status_code)]
        assert all(name in response.headers for name in answer.get("headers", {})), where
        if "content" not in answer:
            assert response.content == b"", where
            return
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in answer["content"], where
        schema = answer["content"][media_type]["schema"]
        if media_type == "application/json":
            self._check_value(response.json(), schema, where)
        elif media_type == "text/event-stream":
            self._check_events(response.text, schema, where)
        else:
            assert schema == {"type": "string"}, where
            assert response.text, where

    def _check_events(self, text: str, schema: dict[str, Any], where: str) -> None:
        frames = [frame for frame in text.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
        assert frames[-1] == "data: [DONE]", where
        for frame in frames:
            event = dict(line.split(": ", 1) for line in frame.split("\n"))
            self._check_value(event, schema, where)
            if event["data"] != "[DONE]":
                (content,) = [item["contentSchema"] for item in schema["properties"]["data"]["anyOf"] if len(item) > 1]
                self._check_value(json.loads(event["data"]), content, where)
                assert event.get("event", json.loads(event["data"]).get("type")) == json.loads(event["data"]).get(
                    "type"
                )

    def _check_value(self, value: Any, schema: dict[str, Any], where: str) -> None:
        faults = list(self._validator(schema).iter_errors(value))
        assert not faults, f"{where}: {self._nearest(value, schema)}"
        for one in value if isinstance(value, list) else [value]:
            self.met |= {name for name in named(schema) if self._is(one, name)}

    def _validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        key = json.dumps(schema)
        if key not in self._validators:
            self._validators[key] = Draft202012Validator({**schema, "components": self._components})
        return self._validators[key]

    def _is(self, value: Any, name: str) -> bool:
        return bool(self._validator({"$ref": f"#/components/schemas/{name}"}).is_valid(value))

    def _nearest(self, value: Any, schema: dict[str, Any]) -> str:
        """What keeps the value from each of the shapes it might have."""
        return "\n".join(
            f"{name}: {fault.json_path}: {fault.message[:300]}"
            for name in named(schema)
            for fault in self._validator({"$ref": f"#/components/schemas/{name}"}).iter_errors(value)
        )


def named(schema: dict[str, Any]) -> Iterator[str]:
    """The shapes that a value, or an item of it, may have."""
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2]
    for part in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from named(part)
