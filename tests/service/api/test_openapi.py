"""The document at /openapi.json: bodies, streams and errors as they are."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.access import OPEN_PATHS
from service.api.docs_page import names_in
from service.api.errors import TABLE, anthropic_error, from_engine
from service.engine.errors import GenerationFailed, ModelLoading
from tests.service.api.asgi import Client


@pytest.fixture(scope="module")
def document(shared_client: Client) -> dict[str, Any]:
    return dict(shared_client.get("/openapi.json").json())


def test_every_generation_route_describes_its_body_and_both_kinds_of_answer(document: dict[str, Any]) -> None:
    bodies = {
        "/chat/completions": "ChatBody",
        "/v1/chat/completions": "ChatBody",
        "/completion": "NativeBody",
        "/completions": "NativeBody",
        "/v1/completions": "CompletionBody",
    }
    for path, name in bodies.items():
        route = document["paths"][path]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}
        assert route["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
        assert route["responses"].keys() >= {"400", "401", "404", "405", "413", "431", "500", "503"}


def test_errors_are_the_one_object_and_nobody_answers_422(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        name = "AnthropicError" if path.startswith("/v1/messages") else "ErrorObject"
        for method, route in methods.items():
            assert "422" not in route["responses"], path
            for status, answer in route["responses"].items():
                if int(status) >= 400 and method != "head":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{name}"}


def test_every_type_and_code_of_an_error_is_told(document: dict[str, Any]) -> None:
    detail = document["components"]["schemas"]["ErrorDetail"]["properties"]
    assert {row.code for row in TABLE.values()} < set(detail["code"]["enum"])
    assert {row.type for row in TABLE.values()} < set(detail["type"]["enum"])
    theirs = document["components"]["schemas"]["AnthropicErrorDetail"]["properties"]["type"]["enum"]
    shown = {anthropic_error(from_engine(error))["error"]["type"] for error in (ModelLoading(), GenerationFailed("m"))}
    assert shown < set(theirs)


def test_a_key_is_asked_for_where_the_server_asks_for_one(document: dict[str, Any]) -> None:
    assert document["security"] == [{}, {"bearer": []}, {"apiKey": []}]
    with Client({"api_key": "secret"}) as client:
        closed = client.get("/openapi.json", headers={"X-Api-Key": "secret"}).json()
    assert closed["security"] == [{"bearer": []}, {"apiKey": []}]
    assert closed["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
    for path, methods in closed["paths"].items():
        for route in methods.values():
            is_open = route.get("security") == []
            assert is_open == (path in OPEN_PATHS)
            assert is_open == ("401" not in route["responses"])


def test_headers_that_clients_act_on_are_told(document: dict[str, Any]) -> None:
    answers = document["paths"]["/completion"]["post"]["responses"]
    assert answers["503"]["headers"].keys() == {"Retry-After"}
    assert answers["405"]["headers"].keys() == {"Allow"}
    assert answers["401"]["headers"].keys() == {"WWW-Authenticate"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [ref for item in node.values() for ref in references(item)]
        return [ref for item in node for ref in references(item)] if isinstance(node, list) else []

    schemas = document["components"]["schemas"]
    assert [ref for ref in references(document) if ref.removeprefix("#/components/schemas/") not in schemas] == []


def test_the_ranges_of_the_fields_are_told(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ChatBody"]["properties"]
    temperature = next(item for item in fields["temperature"]["anyOf"] if item["type"] == "number")
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    assert document["components"]["schemas"]["ChatBody"]["required"] == ["messages"]


def test_what_the_fields_take_beside_their_type_is_told(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"const": False} in schemas["CompletionBody"]["properties"]["logprobs"]["anyOf"]
    by_id = schemas["ChatBody"]["properties"]["logit_bias"]["anyOf"][0]
    assert by_id["propertyNames"] == {"pattern": "^[0-9]{1,19}$"}


@pytest.mark.parametrize("name", ["ResponsesBody", "MessagesBody"])
def test_what_a_route_always_refuses_is_not_in_its_body(document: dict[str, Any], name: str) -> None:
    fields = document["components"]["schemas"][name]["properties"]
    assert "temperature" in fields
    assert fields.keys().isdisjoint({"response_format", "grammar", "n", "timings_per_token"})


def test_an_event_of_a_stream_is_described_as_an_object_with_data(document: dict[str, Any]) -> None:
    answer = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]
    event = answer["content"]["text/event-stream"]["schema"]
    assert event["required"] == ["data"]
    text, end = event["properties"]["data"]["anyOf"]
    assert end == {"const": "[DONE]"}
    assert names_in(text["contentSchema"]) == ["ChatChunk", "ErrorObject"]


def test_several_native_answers_may_come_as_an_array(document: dict[str, Any]) -> None:
    answers = {
        path: document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        for path in ("/completion", "/v1/completions")
    }
    one, selected, several = answers["/completion"]["anyOf"]
    assert several == {"type": "array", "items": {"anyOf": [one, selected]}}
    assert answers["/v1/completions"] == {"$ref": "#/components/schemas/TextCompletion"}


def test_a_key_that_may_be_absent_is_not_required_and_has_no_default(document: dict[str, Any]) -> None:
    choice = document["components"]["schemas"]["ChatChoice"]
    assert "token_ids" not in choice["required"]
    assert "default" not in choice["properties"]["token_ids"]
    assert choice["required"] == ["index", "message", "logprobs", "finish_reason"]


def test_the_model_route_names_its_parameter(document: dict[str, Any]) -> None:
    (parameter,) = document["paths"]["/v1/models/{model_id}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"]) == ("model_id", "path")
