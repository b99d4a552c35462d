"""What the engine tells in its heartbeats, as series: TGI's names and our own."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from infercore.engine.request import EngineStats
from infercore.engine.step_times import (
    BOUNDS,
    BUILD,
    EXECUTE,
    PARTS,
    PHASES,
    SCHEDULE,
    STEP,
    UPDATE,
)
from infercore_api.observability.series import add_histogram, plain_counter
from infercore_api.router.engine_client import EngineClient, EnginePhase

_BUCKETS = len(BOUNDS) + 1
_TGI_DURATIONS = (  # TGI's names of parts of a step, and the parts here that do that work
    ("inference", "Seconds per step, by phase", STEP),
    ("forward", "Seconds per step until the executor's result", EXECUTE),
    ("decode", "Seconds per step to bring in the tokens", UPDATE),
    ("filter", "Seconds per step to choose its sequences", SCHEDULE),
    ("concat", "Seconds per step to lay out its arrays", BUILD),
)


class EngineCollector(Collector):
    """Reads the engine's last heartbeat when somebody scrapes."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from _counters(self._engine.stats)
        yield from _steps(self._engine.stats)
        yield from self._tgi_gauges()
        yield from _tgi_steps(self._engine.stats)

    def _gauges(self) -> Iterator[Metric]:
        stats = self._engine.stats
        ready = self._engine.state.phase is EnginePhase.READY
        for name, help_text, value in (
            ("infercore_running_sequences", "Sequences in the running batch", stats.running),
            ("infercore_waiting_sequences", "Sequences that wait", stats.waiting),
            ("infercore_kv_usage_ratio", "Share of KV blocks in use, 0 to 1", stats.kv_usage),
            ("infercore_kv_blocks", "KV blocks of the engine", stats.kv_blocks),
            ("infercore_engine_ready", "1 if the engine takes requests", ready),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)

    def _tgi_gauges(self) -> Iterator[Metric]:
        stats, info = self._engine.stats, self._engine.info
        yield GaugeMetricFamily(
            "tgi_queue_size", "Requests that wait for their first step", value=stats.waiting
        )
        yield GaugeMetricFamily(
            "tgi_batch_current_size", "Sequences in the running batch", value=stats.running
        )
        if info is None:
            return
        held = round(stats.kv_usage * info.kv_tokens)
        yield GaugeMetricFamily(
            "tgi_batch_current_max_tokens", "Tokens that the running batch holds room for", held
        )
        yield GaugeMetricFamily(
            "tgi_batch_max_total_tokens", "Tokens that all KV blocks hold", info.kv_tokens
        )
        sizes = range(1, info.max_num_seqs + 1)
        family = HistogramMetricFamily("tgi_batch_next_size", "Prompts per step that ran any")
        # a step with more prompts than fit in one cannot be; a short list ends in zeros
        counts = [*stats.prompts_per_step[1:], *([0] * len(sizes))][: len(sizes)]
        total = sum(size * count for size, count in zip(sizes, counts, strict=True))
        add_histogram(family, (), sizes, [*counts, 0], total)
        yield family


def _counters(stats: EngineStats) -> Iterator[Metric]:
    for name, help_text, count in (
        ("infercore_steps", "Steps of the engine", stats.steps),
        ("infercore_joined_steps", "Steps that ran prompts beside decodes", stats.joined_steps),
        ("infercore_failed_steps", "Steps that failed", stats.failed_steps),
        ("infercore_prompt_tokens", "Prompt tokens admitted", stats.prompt_tokens),
        ("infercore_cached_prompt_tokens", "Of them, cached", stats.cached_tokens),
        ("infercore_generated_tokens", "Tokens generated", stats.generated_tokens),
        ("infercore_dropped_tokens", "Tokens computed for nothing", stats.dropped_tokens),
        ("infercore_padded_tokens", "Tokens that fill planned shapes", stats.padded_tokens),
        ("infercore_preemptions", "Sequences preempted", stats.preemptions),
        ("infercore_engine_own_seconds", "Step loop without the executor", stats.own_seconds),
        ("infercore_engine_wait_seconds", "Waiting for the executor", stats.wait_seconds),
    ):
        yield CounterMetricFamily(name, help_text, value=count)


def _steps(stats: EngineStats) -> Iterator[Metric]:
    yield _duration(
        stats, "infercore_step_duration_seconds", "Seconds per step, by phase", STEP, "phase"
    )
    parts = CounterMetricFamily(
        "infercore_step_part_seconds", "Seconds in the parts of steps", labels=("phase", "part")
    )
    for at, phase in enumerate(PHASES):
        for part in (SCHEDULE, BUILD, EXECUTE, UPDATE):
            parts.add_metric((phase, PARTS[part]), _seconds(stats, at, part))
    yield parts


def _tgi_steps(stats: EngineStats) -> Iterator[Metric]:
    done = {phase: _count(stats, at, STEP) for at, phase in enumerate(PHASES)}
    begun = {phase: _count(stats, at, BUILD) for at, phase in enumerate(PHASES)}
    failures = stats.phase_failures or (0,) * len(PHASES)
    failed = {phase: failures[at] for at, phase in enumerate(PHASES)}
    for name, help_text, values in (
        ("tgi_batch_inference_count", "Steps submitted, by phase", begun),
        ("tgi_batch_inference_success", "Steps that succeeded", done),
        ("tgi_batch_inference_failure", "Steps that failed", failed),
    ):
        yield plain_counter(name, help_text, "method", values)
    for name, help_text, part in _TGI_DURATIONS:
        yield _duration(stats, f"tgi_batch_{name}_duration", help_text, part, "method")
    yield plain_counter(
        "tgi_batch_concat",
        "Steps in which prompts joined decodes, by why",
        "reason",
        {"chunking": stats.joined_steps},
    )


def _duration(stats: EngineStats, name: str, help_text: str, part: int, label: str) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=(label,))
    for at, phase in enumerate(PHASES):
        counts = list(_counts(stats, at, part))
        add_histogram(family, (phase,), BOUNDS, counts, _seconds(stats, at, part))
    return family


def _counts(stats: EngineStats, phase: int, part: int) -> Iterable[int]:
    start = (phase * len(PARTS) + part) * _BUCKETS
    return stats.step_counts[start : start + _BUCKETS] or (0,) * _BUCKETS


def _count(stats: EngineStats, phase: int, part: int) -> int:
    return sum(_counts(stats, phase, part))


def _seconds(stats: EngineStats, phase: int, part: int) -> float:
    row = phase * len(PARTS) + part
    return stats.step_seconds[row] if stats.step_seconds else 0.0
