"""Streams as they come over the wire: lines, the order of events, the end, silence, and errors early and late."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.api.exchange import StreamTimes
from tests.server.asking import LEAST, MESSAGES, ask
from tests.server.live import Live, request_bytes
from tests.service.api.asgi import events_of
from tests.service.engine.fakes import endless

NAMED = ("/v1/responses", "/v1/messages")
UNNAMED = [path for path in LEAST if path not in NAMED]
CHATS = [path for path in LEAST if "chat" in path]
TEXT = "a story of äöü and 🥊, told twice"
TOLD: dict[str, dict[str, Any]] = {
    path: {name: [{"role": "user", "content": TEXT}] if name == "messages" else TEXT}
    for path, least in LEAST.items()
    for name in least
    if name != "max_tokens"
}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}


@pytest.fixture(scope="module")
def steady() -> Iterator[Live]:
    """A server that takes its time over each token, so that they come one by one."""
    with Live(step_s=0.003) as server:
        yield server


def stream(live: Live, path: str, **fields: Any) -> str:
    return str(ask(live, path, **TOLD[path], stream=True, **fields))


@pytest.mark.parametrize("path", LEAST)
def test_every_stream_is_lines_of_data_and_ends_with_done(live: Live, path: str) -> None:
    with live.http.stream("POST", live.url + path, json={**LEAST[path], **TOLD[path], "stream": True}) as response:
        raw = response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"].startswith("no-")
    assert response.headers["x-accel-buffering"] == "no"
    assert raw.isascii()
    assert b"\r" not in raw
    *frames, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    for frame in frames:
        *names, data = frame.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert data.startswith(b"data: {")
        assert names == ([b"event: " + event["type"].encode()] if path in NAMED else [])


@pytest.mark.parametrize("path", LEAST)
def test_the_pieces_of_a_stream_come_to_the_whole_answer(steady: Live, path: str) -> None:
    events = [json.loads(line[6:]) for line in stream(steady, path).splitlines() if line.startswith("data: {")]
    pieces = [_piece(event) for event in events]
    assert "".join(pieces) == TEXT
    assert len([piece for piece in pieces if piece]) > 1
    assert not any("\ufffd" in piece for piece in pieces)  # no character is cut in two


def _piece(event: dict[str, Any]) -> str:
    """The text that an event of any family adds."""
    for choice in event.get("choices", ()):
        return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
    delta = event.get("delta", "")
    return str(delta.get("text", "") if isinstance(delta, dict) else delta)


@pytest.mark.parametrize("path", CHATS)
def test_a_chat_begins_with_its_role_and_an_empty_text_and_ends_with_its_reason(live: Live, path: str) -> None:
    chunks = events_of(stream(live, path))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]} == {None}
    assert (chunks[-1]["choices"][0]["delta"], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert not any(chunk["choices"][0]["delta"].get("content", "") is None for chunk in chunks)


@pytest.mark.parametrize("path", UNNAMED)
def test_usage_comes_when_it_is_asked_for_and_only_then(live: Live, path: str) -> None:
    silent = events_of(stream(live, path))
    asked = events_of(stream(live, path, stream_options={"include_usage": True}))
    if path in ("/completion", "/completions"):
        assert asked[-1]["usage"].keys() == USAGE
        return
    assert all(chunk["choices"] for chunk in silent)
    assert (asked[-1]["choices"], asked[-1]["usage"].keys()) == ([], USAGE)
    assert {chunk["usage"] for chunk in asked[:-1]} == {None}


@pytest.mark.parametrize("path", UNNAMED)
def test_continuous_usage_is_in_every_chunk_and_counts_on(steady: Live, path: str) -> None:
    events = events_of(stream(steady, path, stream_options={"continuous_usage_stats": True}))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert len(events) > 2
    assert counts == sorted(counts)
    assert counts[-1] == len(TEXT.encode()) + 1
    assert all(
        event["usage"]["total_tokens"] == event["usage"]["prompt_tokens"] + n
        for event, n in zip(events, counts, strict=True)
    )


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_native_events_have_llama_cpps_shape_and_a_delta_beside_it(live: Live, path: str) -> None:
    *events, last = events_of(stream(live, path))
    for event in events:
        assert event.keys() >= {"index", "content", "tokens", "stop", "tokens_predicted", "tokens_evaluated"}
        assert event["stop"] is False
        assert event["choices"][0]["delta"] == {"content": event["content"]}
    assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "eos")
    assert last["timings"]["predicted_n"] == last["tokens_predicted"] == len(TEXT.encode()) + 1
    assert [id_ for event in [*events, last] for id_ in event["tokens"]][:-1] == list(TEXT.encode())


@pytest.mark.parametrize("path", LEAST)
def test_what_is_wrong_before_the_first_token_is_a_true_status(live: Live, path: str) -> None:
    for fields, code in (({"temperature": 9}, "invalid_parameter"), ({"n_ctx": 4}, "context_length_exceeded")):
        response = live.post(path, {**LEAST[path], **fields, "stream": True})
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["code"] == code


def test_what_goes_wrong_later_is_an_event_and_then_done() -> None:
    told = threading.Event()

    def slow(plan: Any) -> None:
        if any(row.request.num_generated >= 3 for row in plan.rows):
            told.wait(10)

    def fail(row: Any) -> str | None:
        return "not a number" if row.request.num_generated == 3 else None

    with Live(before_step=slow, row_error=fail) as live:
        for path in UNNAMED:
            told.clear()
            with live.http.stream("POST", live.url + path, json={**TOLD[path], "stream": True}) as response:
                text = ""
                for piece in response.iter_text():
                    text += piece
                    told.set()
            *chunks, last = events_of(text)
            assert response.status_code == 200
            assert "".join(map(_piece, chunks)) == TEXT[:3]
            assert last.keys() == {"error"}
            assert (last["error"]["code"], last["error"]["type"]) == ("internal_error", "server_error")
        live.at_rest()


def test_text_that_a_late_reader_gets_together_with_an_error_is_not_lost() -> None:
    def fail(row: Any) -> str | None:
        return "not a number" if row.request.num_generated == 3 else None

    with Live(row_error=fail) as live:
        for path in (*UNNAMED, *UNNAMED, *UNNAMED):
            answer = live.http.post(live.url + path, json={**TOLD[path], "stream": True})
            if answer.status_code == 200:  # else the error came before the first event, and is the answer
                *chunks, last = events_of(answer.text)
                assert last.keys() == {"error"}
                assert "".join(map(_piece, chunks)) == TEXT[:3]
        live.at_rest()


def test_in_silence_there_is_a_comment_now_and_then_and_the_status_does_not_wait_for_ever() -> None:
    gate = threading.Event()
    times = StreamTimes(first_byte_s=0.05, ping_s=0.05)
    with Live(before_step=lambda plan: gate.wait(10) or None, times=times) as live:
        with live.connect() as sock:
            body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
            sock.sendall(request_bytes("/chat/completions", body, "Connection: close\r\n"))
            text = b""
            while text.count(b": ping\n\n") < 3:
                text += sock.recv(4096)
            assert text.startswith(b"HTTP/1.1 200 ")
            assert b"data:" not in text
            gate.set()
            while piece := sock.recv(4096):
                text += piece
        assert text.count(b"data: [DONE]\n\n") == 1
        live.at_rest()


def test_the_times_are_10_s_for_the_first_byte_and_15_s_of_silence() -> None:
    assert StreamTimes() == StreamTimes(first_byte_s=10.0, ping_s=15.0)


def test_a_stream_that_is_not_silent_has_no_comments() -> None:
    """However long it takes: here it is longer than the time after which a silent one would have some."""
    with Live(choose=endless, step_s=0.02, n_ctx=80, times=StreamTimes(ping_s=1.0)) as live:
        text = ask(live, "/completion", prompt="hi", stream=True)
        assert events_of(text)[-1]["timings"]["predicted_ms"] > 1200
        assert ": ping" not in text
