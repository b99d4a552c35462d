"""Metrics of the router: TGI's names for its dashboards, and an own family `infercore_*`.

Every request that was started is counted once more when it ends:
`infercore_requests_started_total` = `infercore_requests_total{outcome}` summed + those in work.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from infercore_api.router.engine_client import EngineClient, EnginePhase

_SECONDS = tuple(0.0001 * 1.5**n for n in range(1, 36))
_TOKENS = tuple(float(2**n) for n in range(18))
_LATENCIES = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class LatencyHistogram(Collector):
    """A histogram for the token path: observed on one thread, so a list without locks."""

    def __init__(self, name: str, help_text: str) -> None:
        self._name = name
        self._help = help_text
        self._counts = [0] * (len(_LATENCIES) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_LATENCIES, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[Metric]:
        buckets, total = [], 0
        for bound, count in zip((*_LATENCIES, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound}", total))
        family = HistogramMetricFamily(self._name, self._help)
        family.add_metric([], buckets, self._sum)
        yield family


class _PlainCounter(Collector):
    """A counter whose name has no `_total`, as TGI's have none."""

    def __init__(self, name: str, help_text: str, label: str | None = None) -> None:
        self._name = name
        self._help = help_text
        self._label = label
        self._values: dict[str, int] = {} if label else {"": 0}

    def inc(self, label: str = "") -> None:
        self._values[label] = self._values.get(label, 0) + 1

    def collect(self) -> Iterable[Metric]:
        family = Metric(self._name, self._help, "unknown")
        for value, count in self._values.items():
            family.add_sample(self._name, {self._label: value} if self._label else {}, count)
        yield family


class _EngineCollector(Collector):
    """Reads the engine's last heartbeat when somebody scrapes."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats, info = self._engine.stats, self._engine.info
        for name, help_text, value in (
            ("tgi_queue_size", "Requests that wait for their first step", stats.waiting),
            ("tgi_batch_current_size", "Sequences in the running batch", stats.running),
            ("infercore_running_sequences", "Sequences in the running batch", stats.running),
            ("infercore_waiting_sequences", "Sequences that wait", stats.waiting),
            ("infercore_kv_usage_ratio", "Share of KV blocks in use, 0 to 1", stats.kv_usage),
            ("infercore_kv_blocks", "KV blocks of the engine", stats.kv_blocks),
            (
                "infercore_engine_ready",
                "1 if the engine takes requests",
                self._engine.state.phase is EnginePhase.READY,
            ),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)
        if info is not None:
            yield GaugeMetricFamily(
                "tgi_batch_max_total_tokens", "Tokens that all KV blocks hold", value=info.kv_tokens
            )
        for name, help_text, count in (
            ("infercore_steps", "Steps of the engine", stats.steps),
            ("infercore_prompt_tokens", "Prompt tokens admitted", stats.prompt_tokens),
            ("infercore_cached_prompt_tokens", "Of them, cached", stats.cached_tokens),
            ("infercore_generated_tokens", "Tokens generated", stats.generated_tokens),
            ("infercore_dropped_tokens", "Tokens computed for nothing", stats.dropped_tokens),
            ("infercore_padded_tokens", "Tokens that fill planned shapes", stats.padded_tokens),
            ("infercore_preemptions", "Sequences preempted", stats.preemptions),
            ("infercore_failed_steps", "Steps that failed", stats.failed_steps),
            ("infercore_engine_own_seconds", "Step loop without the executor", stats.own_seconds),
            ("infercore_engine_wait_seconds", "Waiting for the executor", stats.wait_seconds),
        ):
            yield CounterMetricFamily(name, help_text, value=count)


class Metrics:
    """All metrics of one router, in a registry of their own."""

    def __init__(self, engine: EngineClient) -> None:
        self.registry = registry = CollectorRegistry()

        def seconds(name: str, help_text: str) -> Histogram:
            return Histogram(name, help_text, buckets=_SECONDS, registry=registry)

        def tokens(name: str, help_text: str) -> Histogram:
            return Histogram(name, help_text, buckets=_TOKENS, registry=registry)

        self.request_count = _PlainCounter("tgi_request_count", "Requests started")
        self.request_success = _PlainCounter("tgi_request_success", "Requests that succeeded")
        self.request_failure = _PlainCounter("tgi_request_failure", "Requests that failed", "err")
        self.started = Counter("infercore_requests_started", "Requests started", registry=registry)
        self.ended = Counter(
            "infercore_requests", "Requests ended, by outcome", ["outcome"], registry=registry
        )
        for outcome in ("success", "failure", "cancelled"):
            self.ended.labels(outcome)
        self.in_flight = Gauge(
            "infercore_requests_in_flight", "Requests in work", registry=registry
        )
        self.duration = seconds("tgi_request_duration", "Seconds per request")
        self.validation = seconds("tgi_request_validation_duration", "Seconds of validation")
        self.queue = seconds("tgi_request_queue_duration", "Seconds in the queue")
        self.inference = seconds("tgi_request_inference_duration", "Seconds of inference")
        self.mean_token = seconds(
            "tgi_request_mean_time_per_token_duration", "Inference seconds / generated tokens"
        )
        self.generated = tokens("tgi_request_generated_tokens", "Generated tokens per request")
        self.input_length = tokens("tgi_request_input_length", "Prompt tokens per request")
        self.max_new = tokens("tgi_request_max_new_tokens", "Most tokens a request may generate")
        self.first_token = LatencyHistogram(
            "infercore_time_to_first_token_seconds", "From the request's start to its first token"
        )
        self.inter_token = LatencyHistogram(
            "infercore_inter_token_latency_seconds", "Between outputs of one stream"
        )
        for collector in (
            *(self.request_count, self.request_success, self.request_failure),
            *(self.first_token, self.inter_token, _EngineCollector(engine)),
        ):
            registry.register(collector)

    def render(self) -> bytes:
        """The registry in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)
