"""What a scrape says, read with the parser of Prometheus's own client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import REASONS, Metrics

STATS = {
    "state": "ready",
    "open": 3,
    "inbox": 0,
    "heartbeat_age_s": 0.5,
    "running": 2,
    "waiting": 1,
    "blocks_total": 8,
    "blocks_used": 2,
    "steps": 10,
    "preemptions": 4,
    "prompt_tokens": 100,
    "generated_tokens": 30,
    "drafted_tokens": 8,
    "accepted_tokens": 5,
    "failed_requests": 1,
}
Samples = dict[tuple[str, tuple[str, ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(metrics: Metrics) -> Samples:
    return samples_of(metrics.exposition().decode())


def test_gauges_and_counters_are_the_engines_at_the_time_of_the_scrape() -> None:
    stats = dict(STATS)
    metrics = Metrics(lambda: stats)
    first = scrape(metrics)
    assert first["bitnet:num_requests_running", ()] == 2
    assert first["bitnet:num_requests_waiting", ()] == 1
    assert first["bitnet:kv_cache_usage_perc", ()] == 0.25
    assert first["bitnet:prompt_tokens_total", ()] == 100
    assert first["bitnet:generation_tokens_total", ()] == 30
    assert first["bitnet:num_preemptions_total", ()] == 4
    stats["running"] = 0
    assert scrape(metrics)["bitnet:num_requests_running", ()] == 0


def test_what_dashboards_of_llama_cpp_look_for_is_there_by_its_name() -> None:
    metrics = Metrics(lambda: STATS)
    metrics.finished("stop", 2.0, 100, 30, 0.5, 1.5)
    found = scrape(metrics)
    assert found["llamacpp:prompt_tokens_total", ()] == 100
    assert found["llamacpp:tokens_predicted_total", ()] == 30
    assert found["llamacpp:requests_processing", ()] == 2
    assert found["llamacpp:requests_deferred", ()] == 1
    assert found["llamacpp:n_decode_total", ()] == 10
    assert found["llamacpp:n_busy_slots_per_decode", ()] == 3
    assert found["llamacpp:prompt_tokens_seconds", ()] == 200
    assert found["llamacpp:predicted_tokens_seconds", ()] == 20
    assert found["llamacpp:n_tokens_max", ()] == 130


def test_times_and_ends_of_generations_are_counted() -> None:
    metrics = Metrics(lambda: STATS)
    metrics.first_token(0.2, 100, 64)
    metrics.more_tokens(0.1, 2)
    metrics.finished("length", 1.5, 100, 3, 0.2, 0.1)
    found = scrape(metrics)
    assert found["bitnet:time_to_first_token_seconds_count", ()] == 1
    assert found["bitnet:time_to_first_token_seconds_sum", ()] == 0.2
    assert found["bitnet:inter_token_latency_seconds_count", ()] == 2
    assert found["bitnet:inter_token_latency_seconds_sum", ()] == 0.1
    assert found["bitnet:e2e_request_latency_seconds_sum", ()] == 1.5
    assert found["bitnet:request_prompt_tokens_sum", ()] == 100
    assert found["bitnet:request_generation_tokens_sum", ()] == 3
    assert (found["bitnet:prefix_cache_queries_total", ()], found["bitnet:prefix_cache_hits_total", ()]) == (100, 64)
    assert {reason: found["bitnet:request_success_total", (reason,)] for reason in REASONS} == {
        "stop": 0,
        "length": 1,
        "abort": 0,
        "error": 0,
    }


def test_while_the_model_loads_there_is_a_state_and_nothing_is_made_up() -> None:
    found = scrape(Metrics(lambda: {"state": "loading", "open": 0, "inbox": 0, "heartbeat_age_s": 0.0}))
    assert found["bitnet:engine_state", ("loading",)] == 1
    assert found["bitnet:engine_state", ("ready",)] == 0
    assert ("bitnet:num_requests_running", ()) not in found


def test_two_servers_in_one_process_do_not_share_their_metrics() -> None:
    one, other = Metrics(lambda: STATS), Metrics(lambda: STATS)
    one.answered(200)
    assert scrape(one)["bitnet:http_responses_total", ("200",)] == 1
    assert ("bitnet:http_responses_total", ("200",)) not in scrape(other)
