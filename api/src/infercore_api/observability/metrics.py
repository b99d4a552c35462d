"""Metrics of the router: TGI's names for its dashboards, and an own family `infercore_*`.

Every request that was started is counted once more when it ends:
`infercore_requests_started_total` = `infercore_requests_total{outcome}` summed + those in work.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)

from infercore.engine.request import FinishReason
from infercore.engine.step_times import BOUNDS
from infercore_api.observability.engine_metrics import EngineCollector
from infercore_api.observability.series import Histogram, PlainCounter, TokensHistogram
from infercore_api.observability.vllm_metrics import VllmCollector, aliases, vllm_labels
from infercore_api.router.engine_client import EngineClient

_TOKENS = tuple(float(2**n) for n in range(18))
_LATENCIES = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
# of `err`, and known before the first failure, so that a rate sees it
_FAILURES = ("overloaded", "validation", "template", "generation", "incomplete", "dropped")
_TGI_FAILURES = {
    "template_error": "template",
    "unavailable": "incomplete",
    "incomplete_generation": "incomplete",
    "cancelled": "dropped",
}
"""Our name of a failure: what TGI counts it as, where that is another word."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # one series more for each of ours


class Metrics:
    """All metrics of one router, in a registry of their own.

    vllm_model: `model_name` of the series under vLLM's names; None = without them.
    """

    def __init__(self, engine: EngineClient, vllm_model: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._vllm = vllm_labels(vllm_model)
        self._count_requests()
        self._time_requests()
        self._time_as_tgi(engine)
        self.finished = {reason.value: 0 for reason in FinishReason}
        self.registry.register(EngineCollector(engine))
        if self._vllm:
            self.registry.register(VllmCollector(engine, self._vllm, self.finished))

    def _count_requests(self) -> None:
        registry = self.registry
        self.request_count = PlainCounter("tgi_request_count", "Requests started")
        self.request_success = PlainCounter("tgi_request_success", "Requests that succeeded")
        self._failures = PlainCounter(
            "tgi_request_failure", "Requests that failed", "err", _FAILURES
        )
        for counter in (self.request_count, self.request_success, self._failures):
            registry.register(counter)
        self.started = Counter("infercore_requests_started", "Requests started", registry=registry)
        self.ended = Counter(
            "infercore_requests", "Requests ended, by outcome", ["outcome"], registry=registry
        )
        for outcome in ("success", "failure", "cancelled"):
            self.ended.labels(outcome)
        self.in_flight = Gauge(
            "infercore_requests_in_flight", "Requests in work", registry=registry
        )

    def _time_requests(self) -> None:
        def seconds(name: str, help_text: str) -> Histogram:
            return self._histogram(f"infercore_{name}_seconds", help_text, _LATENCIES)

        self.first_token = seconds(
            "time_to_first_token", "From the request's start to its first token"
        )
        self.inter_token = seconds("inter_token_latency", "Between outputs of one stream")
        self.own_duration = seconds("request_duration", "From a request's start to its end")
        self.own_queue = seconds("request_queue", "In the queue")
        self.prefill = seconds("request_prefill", "From the queue to the first token")
        self.decode = seconds("request_decode", "From the first token to the last")
        self.own_inference = seconds("request_inference", "From the queue to the last token")
        self.per_output_token = seconds(
            "request_time_per_output_token", "Decode seconds per token after the first"
        )
        self.prompt_tokens = self._histogram(
            "infercore_request_prompt_tokens", "Prompt tokens per sequence", _TOKENS
        )
        self.generated_tokens = self._histogram(
            "infercore_request_generated_tokens", "Generated tokens per sequence", _TOKENS
        )

    def _time_as_tgi(self, engine: EngineClient) -> None:
        def seconds(name: str, help_text: str) -> Histogram:
            return self._histogram(f"tgi_request_{name}duration", help_text, BOUNDS)

        def most_input() -> int | None:
            return engine.info.max_input_len if engine.info is not None else None

        def most_total() -> int | None:
            return engine.info.max_model_len if engine.info is not None else None

        self.duration = seconds("", "Seconds per request")
        self.validation = seconds("validation_", "Seconds of validation")
        self.queue = seconds("queue_", "Seconds in the queue")
        self.inference = seconds("inference_", "Seconds of inference")
        self.mean_token = seconds("mean_time_per_token_", "Inference seconds / generated tokens")
        self.generated = TokensHistogram(
            "tgi_request_generated_tokens", "Generated tokens per request", most_total
        )
        self.input_length = TokensHistogram(
            "tgi_request_input_length", "Prompt tokens per request", most_input
        )
        self.max_new = TokensHistogram(
            "tgi_request_max_new_tokens", "Most tokens a request may generate", most_total
        )
        for tokens in (self.generated, self.input_length, self.max_new):
            self.registry.register(tokens)
        self.skipped = self._histogram(
            "tgi_request_skipped_tokens", "Tokens that speculation spared", _TOKENS
        )

    def _histogram(self, name: str, help_text: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, help_text, bounds, aliases(name, self._vllm))
        self.registry.register(histogram)
        return histogram

    def failed(self, why: str) -> None:
        """Count a request that ended by an error of that name, or that its client left."""
        self.ended.labels("cancelled" if why == "cancelled" else "failure").inc()
        self._failures.inc(_TGI_FAILURES.get(why, why))

    def render(self) -> bytes:
        """The registry in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)
