"""What a dashboard wants to know, as Prometheus metrics: vLLM's names under `bitnet:`, and llama.cpp's own.

Counters and gauges of the engine are read when somebody scrapes; times are observed as generations go (`Metrics` is the
engine's observer). Every label comes from a fixed set, so the number of series is bounded whatever clients send. Each
`Metrics` has a registry of its own. Knows neither the engine nor HTTP: numbers are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
REASONS = ("stop", "length", "abort", "error")
STATES = ("loading", "ready", "draining", "dead")
Stats = Mapping[str, int | float | str]

FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
TOTAL_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """All metrics of one server. `stats`: the engine's, as `AsyncEngine.stats` has them."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.ttft = self._histogram("time_to_first_token_seconds", "From asking to the first token", FIRST_TOKEN_S)
        self.gap = self._histogram("inter_token_latency_seconds", "Between two tokens of a generation", GAP_S)
        self.e2e = self._histogram("e2e_request_latency_seconds", "From asking to the last token", TOTAL_S)
        self.prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a generation", TOKENS)
        self.generated = self._histogram("request_generation_tokens", "Tokens generated for a generation", TOKENS)
        self.finishes = self._counter("request_success", "Generations by the reason of their end", ["finished_reason"])
        for reason in REASONS:
            self.finishes.labels(reason)
        self.queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache")
        self.hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache")
        self.answers = self._counter("http_responses", "HTTP answers by status", ["status"])
        self.tokens_max = 0
        self.prompt_s = self.predicted_s = 0.0
        self.registry.register(_FromEngine(stats, self))

    def exposition(self) -> bytes:
        """Everything, in Prometheus's text form."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"bitnet:{name}", text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"bitnet:{name}", text, labels or [], registry=self.registry)

    # ------------------------------------------------------------------ the engine's observer

    def first_token(self, waited_s: float, num_prompt: int, num_cached: int) -> None:
        self.ttft.observe(waited_s)
        self.queries.inc(num_prompt)
        self.hits.inc(num_cached)

    def more_tokens(self, gap_s: float, num_tokens: int) -> None:
        for _ in range(num_tokens):
            self.gap.observe(gap_s / num_tokens)

    def finished(
        self, reason: str, total_s: float, num_prompt: int, num_generated: int, prompt_s: float, predicted_s: float
    ) -> None:
        self.e2e.observe(total_s)
        self.prompt.observe(num_prompt)
        self.generated.observe(num_generated)
        self.finishes.labels(reason).inc()
        self.tokens_max = max(self.tokens_max, num_prompt + num_generated)
        self.prompt_s += prompt_s
        self.predicted_s += predicted_s

    # ------------------------------------------------------------------ HTTP

    def answered(self, status: int) -> None:
        """An HTTP request was answered with this status."""
        self.answers.labels(str(status)).inc()


class _FromEngine(Collector):
    """What the engine counts itself, read at each scrape. While it loads there is nothing but its state."""

    def __init__(self, stats: Callable[[], Stats], metrics: Metrics) -> None:
        self._stats = stats
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        state = GaugeMetricFamily("bitnet:engine_state", "1 for the state the engine is in", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(stats["state"] == name))
        yield state
        yield GaugeMetricFamily(
            "bitnet:engine_step_age_seconds", "Age of the step that is running", float(stats["heartbeat_age_s"])
        )
        yield GaugeMetricFamily("bitnet:num_requests_open", "Requests with a permit", float(stats["open"]))
        if "steps" in stats:
            numbers = {name: float(value) for name, value in stats.items() if not isinstance(value, str)}
            yield from self._gauges(numbers)
            yield from self._counters(numbers)

    def _gauges(self, stats: Mapping[str, float]) -> Iterator[Metric]:
        used = stats["blocks_used"] / stats["blocks_total"]
        prompt_s, predicted_s = self._metrics.prompt_s, self._metrics.predicted_s
        for name, text, value in (
            ("bitnet:num_requests_running", "Requests in a step", stats["running"]),
            ("bitnet:num_requests_waiting", "Requests waiting for a step", stats["waiting"]),
            ("bitnet:kv_cache_usage_perc", "Share of the KV cache that is held, 1 for all of it", used),
            ("bitnet:kv_cache_blocks", "Blocks of the KV cache", stats["blocks_total"]),
            ("llamacpp:requests_processing", "Requests in a step", stats["running"]),
            ("llamacpp:requests_deferred", "Requests waiting for a step", stats["waiting"]),
            ("llamacpp:kv_cache_usage_ratio", "Share of the KV cache that is held", used),
            ("llamacpp:n_tokens_max", "Most tokens of a request so far", float(self._metrics.tokens_max)),
            ("llamacpp:prompt_tokens_seconds", "Prompt tokens a second", _rate(stats["prompt_tokens"], prompt_s)),
            (
                "llamacpp:predicted_tokens_seconds",
                "Generated tokens a second",
                _rate(stats["generated_tokens"], predicted_s),
            ),
            (
                "llamacpp:n_busy_slots_per_decode",
                "Generated tokens a step",
                _rate(stats["generated_tokens"], stats["steps"]),
            ),
        ):
            yield GaugeMetricFamily(name, text, value)

    def _counters(self, stats: Mapping[str, float]) -> Iterator[Metric]:
        for name, text, value in (
            ("bitnet:prompt_tokens", "Prompt tokens computed", stats["prompt_tokens"]),
            ("bitnet:generation_tokens", "Tokens generated", stats["generated_tokens"]),
            ("bitnet:spec_decode_num_draft_tokens", "Next tokens that were guessed", stats["drafted_tokens"]),
            ("bitnet:spec_decode_num_accepted_tokens", "Guesses that were right", stats["accepted_tokens"]),
            ("bitnet:num_preemptions", "Requests that lost their blocks to an older one", stats["preemptions"]),
            ("bitnet:engine_steps", "Steps of the engine", stats["steps"]),
            ("bitnet:failed_requests", "Requests whose row went wrong", stats["failed_requests"]),
            ("llamacpp:prompt_tokens", "Prompt tokens computed", stats["prompt_tokens"]),
            ("llamacpp:prompt_seconds", "Time until first tokens", self._metrics.prompt_s),
            ("llamacpp:tokens_predicted", "Tokens generated", stats["generated_tokens"]),
            ("llamacpp:tokens_predicted_seconds", "Time after first tokens", self._metrics.predicted_s),
            ("llamacpp:n_decode", "Steps of the engine", stats["steps"]),
        ):
            yield CounterMetricFamily(name, text, value)


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
