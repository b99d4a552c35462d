"""The names of vLLM's metrics that routers and autoscalers read, for `--vllm-metrics`.

Their labels are `model_name` and `engine`, as there. Histograms have our own buckets.
"""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from infercore_api.observability.series import Labels
from infercore_api.router.engine_client import EngineClient

ALIASES = {
    "infercore_time_to_first_token_seconds": ("vllm:time_to_first_token_seconds",),
    "infercore_inter_token_latency_seconds": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",  # until 0.11
    ),
    "infercore_request_duration_seconds": ("vllm:e2e_request_latency_seconds",),
    "infercore_request_queue_seconds": ("vllm:request_queue_time_seconds",),
    "infercore_request_prefill_seconds": ("vllm:request_prefill_time_seconds",),
    "infercore_request_decode_seconds": ("vllm:request_decode_time_seconds",),
    "infercore_request_inference_seconds": ("vllm:request_inference_time_seconds",),
    "infercore_request_time_per_output_token_seconds": (
        "vllm:request_time_per_output_token_seconds",
    ),
    "infercore_request_prompt_tokens": ("vllm:request_prompt_tokens",),
    "infercore_request_generated_tokens": ("vllm:request_generation_tokens",),
}
"""{our histogram: what it is called there}"""

REASONS = {"eos": "stop", "stop": "stop", "length": "length", "abort": "abort", "error": "error"}
"""{value of FinishReason: label `finished_reason`}"""


def vllm_labels(model: str | None) -> Labels:
    """Labels of every series; {} if the names are not asked for."""
    return {} if model is None else {"model_name": model, "engine": "0"}


def aliases(name: str, labels: Labels) -> Mapping[str, Labels]:
    """Further names of one of our histograms."""
    return dict.fromkeys(ALIASES.get(name, ()), labels) if labels else {}


class VllmCollector(Collector):
    """Gauges and counters of the engine under vLLM's names.

    finished: sequences by `FinishReason` value; the router counts them.
    """

    def __init__(self, engine: EngineClient, labels: Labels, finished: Mapping[str, int]) -> None:
        self._engine = engine
        self._labels = labels
        self._finished = finished

    def collect(self) -> Iterator[Metric]:
        stats, keys, values = self._engine.stats, tuple(self._labels), tuple(self._labels.values())
        usage = ("KV usage, 0 to 1", stats.kv_usage)
        for name, help_text, value in (
            ("num_requests_running", "Sequences in the running batch", stats.running),
            ("num_requests_waiting", "Sequences that wait", stats.waiting),
            ("kv_cache_usage_perc", *usage),
            ("gpu_cache_usage_perc", *usage),  # until 0.11
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", help_text, labels=keys)
            gauge.add_metric(values, value)
            yield gauge
        for name, help_text, count in (
            ("prefix_cache_queries", "Prompt tokens looked up", stats.prompt_tokens),
            ("prefix_cache_hits", "Of them, cached", stats.cached_tokens),
            ("prompt_tokens", "Prompt tokens", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.generated_tokens),
            ("num_preemptions", "Sequences preempted", stats.preemptions),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", help_text, labels=keys)
            counter.add_metric(values, count)
            yield counter
        yield self._success(keys, values)
        yield from self._cache_config(keys, values)

    def _success(self, keys: tuple[str, ...], values: tuple[str, ...]) -> Metric:
        counts = dict.fromkeys(REASONS.values(), 0)
        for reason, count in self._finished.items():
            counts[REASONS[reason]] += count
        family = CounterMetricFamily(
            "vllm:request_success", "Sequences that ended", labels=(*keys, "finished_reason")
        )
        for reason, count in counts.items():
            family.add_metric((*values, reason), count)
        return family

    def _cache_config(self, keys: tuple[str, ...], values: tuple[str, ...]) -> Iterator[Metric]:
        info = self._engine.info
        if info is None:
            return
        family = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Size and number of KV blocks, as labels",
            labels=(*keys, "block_size", "num_gpu_blocks"),
        )
        family.add_metric((*values, str(info.block_size), str(info.kv_blocks)), 1)
        yield family
