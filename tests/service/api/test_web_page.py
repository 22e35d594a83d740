"""The page at `/`: what is sent, under which policy, and what the file may not contain. Its behaviour: tests/page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re

import pytest

from service.api.web_page import FILE
from tests.service.api.asgi import Client, error_of

TEXT = FILE.read_text("utf-8")


def policy_of(header: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in header.split(";"))}


def test_the_policy_allows_exactly_the_scripts_and_styles_of_the_file(client: Client) -> None:
    response = client.get("/")
    policy = policy_of(response.headers["content-security-policy"])
    assert response.headers["content-type"].startswith("text/html")
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    for kind in ("script", "style"):
        pieces = re.findall(rf"<{kind}>(.*?)</{kind}>", response.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode() for piece in pieces]
        assert policy[f"{kind}-src"] == [f"'sha256-{value}'" for value in hashes]
        assert hashes


@pytest.mark.parametrize(
    "unwanted",
    [
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML",
        r"\beval\(|new Function|setAttribute\(\"on|javascript:",
        r"<[a-z][^>]*\s(on\w+|style)\s*=",
        r"<(script|style|link|img|iframe)[^>]*\ssrc\s*=|@import|url\(",
        r"https?://(?!www\.w3\.org/)",
    ],
)
def test_the_file_parses_no_markup_runs_no_text_and_names_no_other_place(unwanted: str) -> None:
    assert re.search(unwanted, TEXT) is None


def test_the_page_is_told_the_servers_defaults() -> None:
    with Client({"default_temperature": 0.3, "default_seed": 5}) as client:
        text = client.get("/").text
    (content,) = re.findall(r'<meta name="bitnet-server" content="([^"]*)">', text)
    told = json.loads(html.unescape(content))
    assert told["needs_key"] is False
    assert told["defaults"]["temperature"] == 0.3
    assert told["defaults"]["seed"] == 5
    assert told["defaults"]["top_p"] == 0.95


def test_the_page_is_open_where_a_key_is_asked_for_and_does_not_hold_it() -> None:
    with Client({"api_key": "a-secret-key"}) as client:
        response = client.get("/")
        assert response.status_code == 200
        assert "a-secret-key" not in response.text
        assert "needs_key&quot;: true" in response.text
        error_of(client.get("/v1/models"), 401, "invalid_api_key")


def test_ui_false_switches_the_page_off() -> None:
    with Client({"ui": False}) as client:
        error_of(client.get("/"), 404, "not_found")


def test_the_page_answers_head_and_no_other_method(client: Client) -> None:
    assert client.run(client.http.head("/")).status_code == 200
    error_of(client.post("/", {}), 405, "method_not_allowed")


def test_the_page_is_served_while_the_model_loads() -> None:
    with Client(ready=False, before_load=lambda: None) as client:
        assert client.get("/").status_code == 200
