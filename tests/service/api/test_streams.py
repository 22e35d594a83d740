"""Streams: the first byte, silence, errors before and after the first token, and what is left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.api.exchange import StreamTimes
from service.engine.plan import ScheduledRow, StepPlan
from tests.service.api.asgi import CHAT, Client, error_of, events_of
from tests.service.engine.fakes import endless

IMPATIENT = StreamTimes(first_byte_s=0.02, ping_s=0.02)


def generated(row: ScheduledRow) -> int:
    return row.request.num_generated


@pytest.mark.parametrize("path", ["/chat/completions", "/completion", "/v1/completions"])
def test_an_error_before_the_first_token_is_a_true_status(path: str) -> None:
    with Client(row_error=lambda row: "poisoned" if row.request.id != "probe" else None) as client:
        error_of(client.post(path, {**CHAT, "prompt": "a", "stream": True}), 500, "internal_error")
        client.until(lambda: client.engine.stats()["open"] == 0)


@pytest.mark.parametrize("path", ["/chat/completions", "/completion", "/v1/completions"])
def test_an_error_after_the_first_token_is_an_event_and_then_done(path: str) -> None:
    late = threading.Event()

    def slow(plan: StepPlan) -> None:
        if any(generated(row) >= 2 for row in plan.rows):
            late.wait(5)

    def fail(row: ScheduledRow) -> str | None:
        return "poisoned" if row.request.id != "probe" and generated(row) >= 2 else None

    with Client(row_error=fail, before_step=slow) as client:
        body = {**CHAT, "prompt": "hello", "stream": True}
        events = events_of(client.watch(path, body, lambda text: late.set() if "data:" in text else None))
        assert events[-1].keys() == {"error"}
        assert events[-1]["error"]["code"] == "internal_error"
        assert len(events) > 1
        assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
        client.until(lambda: client.engine.stats()["blocks_used"] == 0)


def test_silence_is_filled_with_comments() -> None:
    gate = threading.Event()

    def patient(text: str) -> None:
        if text.count(": ping") == 3:
            gate.set()

    with Client(times=IMPATIENT, before_step=lambda plan: gate.wait(5) or None) as client:
        text = client.watch("/chat/completions", {**CHAT, "stream": True}, patient)
    assert text.startswith(": ping\n\n: ping\n\n: ping\n\n")
    deltas = [event["choices"][0]["delta"] for event in events_of(text)]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "hello there"


def test_a_stream_without_silence_has_no_pings(client: Client) -> None:
    assert ": ping" not in client.post("/chat/completions", {**CHAT, "stream": True}).text


def test_the_role_chunk_waits_for_the_first_text_and_comes_with_it() -> None:
    seen: list[str] = []
    with Client() as client:
        text = client.watch("/chat/completions", {**CHAT, "stream": True}, seen.append)
    assert next(event["choices"][0]["delta"].get("role") for event in events_of(text)) == "assistant"
    first = next(item for item in seen if item)
    assert first.count("data:") >= 2
    assert '"delta":{"content":"' in first


def test_a_drain_at_its_deadline_ends_streams_with_an_error_event_and_done() -> None:
    with Client(choose=endless, step_s=0.005, n_ctx=512) as client:

        async def cut() -> tuple[str, int]:
            streamed = asyncio.ensure_future(client.http.post("/completion", json={"prompt": "a", "stream": True}))
            whole = asyncio.ensure_future(client.http.post("/completion", json={"prompt": "a"}))
            while int(client.engine.stats()["generated_tokens"]) < 6:
                await asyncio.sleep(0.005)
            assert not await client.engine.drain(0.05)
            return (await streamed).text, (await whole).status_code

        text, status = client.run(cut())
        *chunks, last = events_of(text)
        assert last["error"]["code"] == "draining"
        assert chunks
        assert status == 503
        assert client.engine.stats()["open"] == 0


def test_an_engine_that_dies_ends_streams_with_an_error_event_and_done() -> None:
    def die(plan: StepPlan) -> None:
        if any(generated(row) >= 3 for row in plan.rows) or plan.rows[0].request.id == "probe":
            raise MemoryError

    with Client(before_step=die) as client:
        _, events = client.stream("/chat/completions", CHAT)
        assert events[-1]["error"]["code"] in ("internal_error", "engine_dead")
        client.until(lambda: client.engine.state == "dead")
        error_of(client.get("/health"), 503, "engine_dead")
