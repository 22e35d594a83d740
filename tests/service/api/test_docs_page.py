"""The page at /docs: everything of the document is on it, and nothing of it asks the net."""

from __future__ import annotations

import re

from service.api.docs_page import names_in, type_of
from tests.service.api.asgi import Client


def test_every_route_and_field_of_the_document_is_on_the_page(client: Client) -> None:
    page = client.get("/docs").text
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        assert f"<code>{path}</code>" in page
        for route in methods.values():
            assert route["summary"] in page.replace("&#39;", "'")
    for name, schema in document["components"]["schemas"].items():
        if f'id="{name}"' in page:
            assert all(f"<code>{field}</code>" in page for field in schema["properties"])
    for name in ("ChatBody", "ChatCompletion", "ChatChunk", "NativeLastEvent", "Slot", "ErrorDetail"):
        assert page.count(f'<h3 id="{name}">') == 1
    assert '<td>401</td><td>the key is missing or wrong</td><td>\napplication/json <a href="#ErrorObject">' in page


def test_the_page_has_no_script_and_no_address_of_anybody_else(client: Client) -> None:
    response = client.get("/docs")
    assert "<script" not in response.text
    assert re.findall(r"(?:https?:)?//[a-z]", response.text) == []
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_two_readers_get_the_page_under_their_own_ids(client: Client) -> None:
    answers = [client.get("/docs", headers={"X-Request-Id": name}) for name in ("one", "two")]
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [["one"], ["two"]]
    assert answers[0].text == answers[1].text


def test_types_are_told_with_their_limits_and_without_null() -> None:
    schemas = {"Part": {"type": "object", "properties": {"text": {"type": "string"}}}}
    number = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 2}, {"type": "null"}]}
    assert type_of(number, schemas) == "number (≥ 0, ≤ 2)"
    assert type_of({"type": "array", "items": {"$ref": "#/x/Part"}}, schemas) == "array of {text: string}"
    assert type_of({"enum": ["a", "b"]}, schemas) == "a | b"


def test_types_of_answers_are_told_by_name_and_with_null() -> None:
    part_or_null = {"anyOf": [{"$ref": "#/x/Part"}, {"type": "null"}]}
    assert type_of(part_or_null, {}) == "Part or null"
    assert type_of({"const": False}, {}) == "false"
    assert names_in({"anyOf": [part_or_null, {"items": {"$ref": "#/x/Other"}}]}) == ["Part", "Other"]
