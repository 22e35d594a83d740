"""/props, /slots and /metrics while nothing runs and while something does, and what is switched off."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.service.api.asgi import CHAT, Client, error_of, loading_client
from tests.service.engine.fakes import endless
from tests.service.test_metrics import samples_of


def test_props_tell_the_defaults_of_a_silent_request(client: Client) -> None:
    props = client.get("/props").json()
    settings = props["default_generation_settings"]
    answered = client.post("/completion", {"prompt": "a"}).json()["generation_settings"]
    assert settings["n_ctx"] == answered["n_ctx"]
    assert settings["params"] == {name: answered[name] for name in settings["params"] if name != "seed"} | {"seed": -1}
    assert (props["total_slots"], props["model_alias"], props["bos_token"]) == (4, "fake", "<bos>")
    assert props["chat_template"] == "a template"


def test_idle_slots_are_all_free(client: Client) -> None:
    assert client.get("/slots", params={"fail_on_no_slot": "1"}).json() == [
        {"id": i, "n_ctx": 128, "speculative": True, "is_processing": False} for i in range(4)
    ]


@pytest.mark.parametrize("wish", ["2", "true", ""])
def test_a_wish_that_slots_do_not_know_is_refused(client: Client, wish: str) -> None:
    error = error_of(client.get("/slots", params={"fail_on_no_slot": wish}), 400, "invalid_parameter")
    assert error["param"] == "fail_on_no_slot"


def test_slots_show_what_runs_without_a_word_of_it() -> None:
    with Client(choose=endless, step_s=0.002, n_ctx=400, max_running=1) as client:
        seen = []

        def look(text: str) -> None:
            if text.count("data:") > 3 and not seen:
                seen.extend([client.engine.progress(), client.engine.stats()])

        client.watch("/completion", {"prompt": "our secret", "stream": True, "n_predict": 100}, look)
        ((progress,), stats) = seen
        assert stats["running"] == 1
        assert (progress.num_prompt, progress.n_ctx) == (11, 400)
        assert progress.num_generated + progress.num_left == 100
        assert "secret" not in repr(progress)


def test_a_busy_slot_has_the_names_of_llama_cpp() -> None:
    with Client(choose=endless, step_s=0.005, n_ctx=400, max_running=1) as client:

        async def both() -> list[dict[str, object]]:
            body = json.dumps({"prompt": "our secret", "stream": True, "n_predict": 60})
            task = client.runner.get_loop().create_task(client.http.post("/completion", content=body))
            while not client.engine.progress() or not client.engine.progress()[0].num_generated:
                await asyncio.sleep(0.002)
            slots = await client.http.get("/slots")
            full = await client.http.get("/slots?fail_on_no_slot=1")
            error_of(full, 503, "queue_full")
            await task
            return list(slots.json())

        (slot,) = client.run(both())
    assert slot["is_processing"] is True
    assert str(slot["generation"]).startswith("cmpl-")
    assert (slot["n_prompt_tokens"], slot["n_prompt_tokens_processed"]) == (11, 11)
    assert "secret" not in json.dumps(slot)


def test_metrics_count_what_was_served_and_refused() -> None:
    with Client() as client:
        client.post("/chat/completions", CHAT)
        client.post("/completion", {"prompt": "abc", "n_predict": 2})
        client.post("/completion", {"prompt": 5})
        client.get("/" + "x" * 50)
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        found = samples_of(response.text)
    assert found["bitnet:request_success_total", ("stop",)] == 1
    assert found["bitnet:request_success_total", ("length",)] == 1
    assert found["bitnet:time_to_first_token_seconds_count", ()] == 2
    assert found["bitnet:e2e_request_latency_seconds_count", ()] == 2
    assert found["bitnet:generation_tokens_total", ()] == found["bitnet:request_generation_tokens_sum", ()]
    assert found["bitnet:http_responses_total", ("400",)] == 1
    assert found["bitnet:http_responses_total", ("404",)] == 1


def test_a_prefix_that_is_found_counts_as_hit() -> None:
    with Client() as client:
        for _ in range(2):
            client.post("/completion", {"prompt": "a" * 40, "n_predict": 1})
        found = samples_of(client.get("/metrics").text)
    assert found["bitnet:prefix_cache_queries_total", ()] == 82
    assert found["bitnet:prefix_cache_hits_total", ()] == 40


def test_the_series_do_not_grow_with_what_clients_send() -> None:
    with Client() as client:
        client.get("/a")
        before = set(samples_of(client.get("/metrics").text))
        for i in range(20):
            client.get(f"/{i}", headers={"X-Request-Id": f"id-{i}"})
            client.post("/v1/chat/completions", {**CHAT, "model": f"m{i}", "user": f"u{i}"})
        after = set(samples_of(client.get("/metrics").text))
    assert {name for name, _ in after - before} <= {"bitnet:http_responses_total", "bitnet:http_responses_created"}


def test_metrics_answer_while_the_model_loads() -> None:
    with loading_client() as client:
        assert samples_of(client.get("/metrics").text)["bitnet:engine_state", ("loading",)] == 1
        error_of(client.get("/slots"), 503, "model_loading")
        error_of(client.get("/props"), 503, "model_loading")


@pytest.mark.parametrize(
    "path",
    ["/embeddings", "/embedding", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank", "/v1/reranking"],
)
def test_what_needs_another_model_is_switched_off(client: Client, path: str) -> None:
    assert error_of(client.post(path, {"input": "a"}), 501, "not_supported")["type"] == "not_supported_error"
