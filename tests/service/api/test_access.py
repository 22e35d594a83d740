"""Keys, origins, hosts, header rules and request ids, on every route."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.service.api.asgi import CHAT, Client, error_of

KEY = "a-key-of-ours"
PATHS = [
    ("GET", "/v1/models"),
    ("GET", "/models"),
    ("GET", "/v1/models/fake"),
    ("GET", "/openapi.json"),
    ("GET", "/nope"),
    ("POST", "/chat/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/completion"),
    ("POST", "/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("GET", "/tokenizer_info"),
    ("GET", "/props"),
    ("GET", "/slots"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("DELETE", "/health/other"),
]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer "},
        {"X-Api-Key": ""},
        {"X-Api-Key": KEY.upper()},
        {"Host": "health", "X-Forwarded-Path": "/health"},
    ],
)
def test_with_a_key_set_every_route_but_health_asks_for_it(headers: dict[str, str]) -> None:
    with Client({"api_key": KEY}) as client:
        for method, path in PATHS:
            response = client.run(client.http.request(method, path, headers=headers))
            assert error_of(response, 401, "invalid_api_key")["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/v1/health", "/health/live", "/health/ready"):
            assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}]
)
def test_the_key_is_taken_as_bearer_and_as_x_api_key(headers: dict[str, str]) -> None:
    with Client({"api_key": KEY}) as client:
        assert client.post("/chat/completions", CHAT, headers=headers).status_code == 200


def test_without_origins_there_are_no_cors_headers(client: Client) -> None:
    response = client.get("/health", headers={"Origin": "http://page"})
    assert [name for name in response.headers if name.startswith("access-control")] == []


PREFLIGHT = {
    "Origin": "http://page",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


@pytest.mark.parametrize("origins", ["http://page", "http://other,http://page", "*"])
def test_pages_of_listed_origins_may_read_answers_and_ask_before_they_have_a_key(origins: str) -> None:
    with Client({"cors_origins": origins, "api_key": KEY}) as client:
        preflight = client.run(client.http.options("/chat/completions", headers=PREFLIGHT))
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "http://page"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        refused = client.post("/chat/completions", CHAT, headers={"Origin": "http://page"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "http://page"
        assert refused.headers["vary"] == "Origin"


def test_pages_of_other_origins_get_no_leave() -> None:
    with Client({"cors_origins": "http://page"}) as client:
        response = client.get("/health", headers={"Origin": "http://page.evil"})
        assert "access-control-allow-origin" not in response.headers
        preflight = client.run(client.http.options("/health", headers={**PREFLIGHT, "Origin": "null"}))
        error_of(preflight, 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("good.example", True),
        ("GOOD.example:8081", True),
        ("a.below.example", True),
        ("[::1]:8081", True),
        ("evil.example", False),
        ("good.example.evil", False),
        ("below.example", False),
        ("[::2]", False),
        ("", False),
    ],
)
def test_only_listed_hosts_are_answered(host: str, served: bool) -> None:
    with Client({"allowed_hosts": "good.example,*.below.example,[::1]"}) as client:
        response = client.get("/health", headers={"Host": host})
        if served:
            assert response.status_code == 200
        else:
            assert error_of(response, 400, "invalid_parameter")["param"] == "Host"


@pytest.mark.parametrize("given", ["abc", "a.b-c_d:1", "x" * 128])
def test_a_valid_request_id_is_echoed(client: Client, given: str) -> None:
    for path in ("/health", "/nope"):
        assert client.get(path, headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "ä", '"'])
def test_an_invalid_request_id_is_replaced(client: Client, given: str) -> None:
    made = client.get("/health", headers={"X-Request-Id": given.encode("latin-1")}).headers["x-request-id"]
    assert made != given
    assert len(made) == 32


def test_two_running_requests_may_carry_the_same_id(client: Client) -> None:
    async def both() -> list[httpx.Response]:
        calls = [client.http.post("/completion", json={"prompt": "abc"}, headers={"X-Request-Id": "same"})] * 1
        calls.append(client.http.post("/completion", json={"prompt": "def"}, headers={"X-Request-Id": "same"}))
        return list(await asyncio.gather(*calls))

    assert [response.json()["content"] for response in client.run(both())] == ["abc", "def"]


def test_a_header_over_the_limit_is_431() -> None:
    with Client({"max_header_bytes": 2048}) as client:
        for kwargs in ({"headers": {"X-Filler": "x" * 2048}}, {"params": {"q": "x" * 2048}}):
            error_of(client.get("/health", **kwargs), 431, "too_large")
        assert client.get("/health", headers={"X-Filler": "x" * 1024}).status_code == 200


def test_a_length_given_in_two_ways_is_refused(client: Client) -> None:
    headers = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    response = client.post("/completion", b"{}", headers=headers)
    error_of(response, 400, "invalid_request")
    assert response.headers["connection"] == "close"
