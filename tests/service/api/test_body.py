"""Hostile bodies: each of them a 400 or 413 with the error object, never a 500."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.service.api.asgi import CHAT, Client, error_of

PATHS = ["/chat/completions", "/completion", "/v1/completions"]
MAX_BYTES = 4096


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[1, 2]",
        b'"text"',
        b"17",
        b"true",
        b"{'single': 1}",
        b'{"prompt": "a"} {"prompt": "b"}',
        b'\xef\xbb\xbf{"prompt": "a"}',
        '{"prompt": "a"}'.encode("utf-16"),
        '{"prompt": "ä"}'.encode("latin-1"),
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "a\nb"}',
        b"\x1f\x8b\x08\x00gzip",
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' + b'{"y": ' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'{"seed": ' + b"9" * 5_000 + b"}",
    ],
)
def test_what_is_not_one_json_object_is_invalid_json(client: Client, path: str, body: bytes) -> None:
    error = error_of(client.post(path, body), 400, "invalid_json")
    assert error["type"] == "invalid_request_error"


FLOATS = ["temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"[1e999]", b'{"a": NaN}'])
@pytest.mark.parametrize("name", [*FLOATS, "seed", "stop", "unknown", "metadata"])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_field(
    client: Client, name: str, number: bytes
) -> None:
    body = b'{"prompt": "a", "' + name.encode() + b'": ' + number + b"}"
    assert error_of(client.post("/completion", body), 400, "invalid_parameter")["param"] == name


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"prompt": "\ud800"}', "prompt"),
        (rb'{"prompt": "a\udfffb"}', "prompt"),
        (rb'{"prompt": "a", "stop": ["\uD83D"]}', "stop"),
        (rb'{"prompt": "a", "temperature": "\ud800"}', "temperature"),
        (rb'{"prompt": "a", "metadata": {"deep": [{"\udc00": 1}]}}', "metadata"),
        (rb'{"prompt": "a", "\ud800": 1}', r"\ud800"),
    ],
)
def test_a_lone_surrogate_anywhere_is_refused(client: Client, body: bytes, param: str) -> None:
    assert error_of(client.post("/completion", body), 400, "invalid_parameter")["param"] == param


def test_a_surrogate_pair_is_a_character(client: Client) -> None:
    assert client.post("/completion", rb'{"prompt": "\ud83e\udd4a"}').json()["content"] == "🥊"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=x", ""])
def test_a_body_is_parsed_whatever_its_content_type(client: Client, kind: str) -> None:
    assert client.post("/completion", {"prompt": "abc"}, headers={"Content-Type": kind}).json()["content"] == "abc"


def test_the_last_of_two_equal_names_wins(client: Client) -> None:
    assert client.post("/completion", b'{"prompt": "a", "prompt": "b"}').json()["content"] == "b"


@pytest.mark.parametrize("path", PATHS)
def test_a_body_over_the_limit_is_413(path: str) -> None:
    with Client({"max_body_bytes": MAX_BYTES}) as client:
        error = error_of(client.post(path, b" " * (MAX_BYTES + 1)), 413, "too_large")
        assert str(MAX_BYTES) in error["message"]
        assert client.post("/completion", b'{"prompt": "a"}'.ljust(MAX_BYTES)).status_code == 200


def test_a_chunked_body_and_one_whose_declared_length_lies_are_counted() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000
            await asyncio.sleep(0)

    with Client({"max_body_bytes": MAX_BYTES}) as client:
        chunked = client.run(client.http.post("/completion", content=chunks()))
        error_of(chunked, 413, "too_large")
        lying = client.run(client.http.post("/completion", content=chunks(), headers={"Content-Length": "10"}))
        error_of(lying, 413, "too_large")
        declared = client.run(client.http.post("/completion", content=b"{}", headers={"Content-Length": "99999999"}))
        error_of(declared, 413, "too_large")


def test_a_large_body_is_read_like_a_small_one(client: Client) -> None:
    response = client.post("/chat/completions", {**CHAT, "metadata": {"text": "x" * 200_000}})
    assert response.json()["choices"][0]["message"]["content"] == "hello there"


def test_a_million_bad_messages_cost_one_error(client: Client) -> None:
    body = b'{"messages": [' + b",".join([b"1"] * 300_000) + b"]}"
    assert error_of(client.post("/chat/completions", body), 400, "invalid_parameter")["param"] == "messages"
