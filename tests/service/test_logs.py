"""Log lines: one for each request, whatever a client sends, in both forms, and never what it wrote."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from service.logs import request_id, set_up_logs
from tests.service.api.asgi import Client


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(form: str, path: str, body: object, level: str = "info", **headers: str) -> list[str]:
    stream = io.StringIO()
    with Client() as client:
        set_up_logs(form, level, stream)  # type: ignore[arg-type]
        client.post(path, body, headers=headers)
    return [line for line in stream.getvalue().splitlines() if "service.api" in line]


def test_a_request_leaves_one_line_with_its_id_and_counts() -> None:
    (line,) = lines_of("text", "/completion", {"prompt": "our secret"}, **{"X-Request-Id": "id-1"})
    assert "[id-1]" in line
    for part in ("method=POST", "path=/completion", "status=200", "prompt_tokens=11", "completion_tokens=11"):
        assert part in line
    assert "finish=stop" in line
    assert re.search(r"ttft_ms=\d+\.\d tok_s=\d+\.\d", line)
    assert "secret" not in line


def test_a_stream_leaves_one_line_too() -> None:
    (line,) = lines_of("text", "/completion", {"prompt": "our secret", "stream": True})
    assert "status=200" in line
    assert "stream=True" in line
    assert "completion_tokens=11" in line
    assert "secret" not in line


def test_json_lines_are_objects() -> None:
    (line,) = lines_of("json", "/completion", {"prompt": "our secret"}, **{"X-Request-Id": "id-1"})
    item = json.loads(line)
    assert (item["request_id"], item["status"], item["level"]) == ("id-1", 200, "INFO")
    assert item["prompt_tokens"] == 11


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_refusal_is_logged_by_its_code_and_without_what_was_sent(form: str) -> None:
    (line,) = lines_of(form, "/completion", {"prompt": "our secret", "temperature": "secret"})
    assert "invalid_parameter" in line
    assert "secret" not in line


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_path_cannot_forge_a_line(form: str) -> None:
    forged = "/x%0a2026-01-01T00:00:00 INFO service.api [-] forged%0d%e2%80%a8%1b[31m"
    (line,) = lines_of(form, forged, {})
    assert "forged" in line
    assert "\x1b" not in line


def test_not_even_debug_shows_what_is_said() -> None:
    stream = io.StringIO()
    with Client() as client:
        set_up_logs("text", "debug", stream)
        client.post("/completion", {"prompt": "our secret", "stream": True})
        client.get("/health")
    assert "secret" not in stream.getvalue()
    assert "path=/health" in stream.getvalue()


def test_a_health_probe_costs_no_line_at_info() -> None:
    stream = io.StringIO()
    with Client() as client:
        set_up_logs("text", "info", stream)
        client.get("/health")
        client.get("/nope")
    assert "health" not in stream.getvalue()
    assert "status=404" in stream.getvalue()


def test_a_traceback_is_indented_and_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    set_up_logs("text", "info", stream)
    token = request_id.set("id-2")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("test").exception("it\nbroke")
    finally:
        request_id.reset(token)
    first, *rest = stream.getvalue().splitlines()
    assert "[id-2] it\\nbroke" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)
