"""The engine in this process: tokens per second by batch size, and its own time per step."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infercore.config import EngineConfig
from infercore.engine.engine import Engine
from infercore.engine.request import Request
from infercore.launch import Launched, launch
from infercore.sampling import SamplingParams
from infercore_api.bench.figures import Figure, Trace, latency_figures
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.prompts import Prompts
from infercore_api.bench.replay import BareRun, recorded, replay

BARE_BATCH = 16  # the batch that the bare model loop is held against

Tick = Callable[[str], None]
"""Told what was just measured, to move the bar."""

_ids = itertools.count(1)


@dataclass(slots=True)
class EngineRun:
    """One batch through the engine, from the first request to the last token.

    prefill_seconds: until every prompt had its first token. decode_seconds, decode_tokens: after.
    own_seconds, steps: the engine's own counters over the whole run.
    """

    prefill_seconds: float
    decode_seconds: float
    decode_tokens: int
    own_seconds: float
    steps: int
    traces: list[Trace]
    tokens: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds


def run_batch(engine: Engine, prompts: Sequence[Sequence[int]], output_len: int) -> EngineRun:
    """All prompts at once, each to `output_len` tokens. Raises a request's error."""
    before, began = engine.stats(), time.perf_counter()
    traces: dict[int, Trace] = {}
    for prompt in prompts:
        request_id = next(_ids)
        sampling = SamplingParams(temperature=0.0, seed=0, max_tokens=output_len, ignore_eos=True)
        engine.add(Request(request_id, prompt, sampling, arrival=time.monotonic()))
        traces[request_id] = Trace(began, [])
    tokens: list[int] = []
    missing, first, prefilled = set(traces), began, 0
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            if output.error is not None:
                raise output.error
            trace = traces[output.request_id]
            trace.arrivals += [now] * len(output.token_ids)
            trace.tokens, trace.ended = len(trace.arrivals), now
            tokens += output.token_ids
            missing.discard(output.request_id)
        if not prefilled and not missing:
            first, prefilled = now, len(tokens)
    after = engine.stats()
    return EngineRun(
        first - began,
        time.perf_counter() - first,
        len(tokens) - prefilled,
        after.own_seconds - before.own_seconds,
        after.steps - before.steps,
        list(traces.values()),
        tokens,
    )


class Offline:
    """A launched engine to measure, and prompts for it. A prefix cache would hide the prefill."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        largest = max(options.batch_sizes) if options.offline else 1
        config = EngineConfig(
            model=options.model_id,
            backend=options.backend,
            dtype=options.dtype,
            threads=options.threads,
            prefix_cache=False,
            max_num_seqs=max(64, largest),
        )
        self.launched: Launched = launch(config)
        self.prompts = Prompts(Path(self.launched.info.model_path), options.seed)
        self._run(1)  # what is slow only once

    def close(self) -> None:
        self.launched.close()

    def throughput(self, tick: Tick) -> list[Figure]:
        """Prefill and decode by batch size, and the engine's share of it."""
        figures: list[Figure] = []
        for batch in self._options.batch_sizes:
            runs = []
            for _ in range(self._options.rounds):
                runs.append(self._run(batch))
                tick(f"offline, batch {batch}")
            figures += self._throughput_figures(batch, runs)
        return figures

    def against_bare_loop(self, tick: Tick) -> list[Figure]:
        """The engine and the bare model loop in turns, at batch 16 if that is measured at all."""
        sizes = self._options.batch_sizes
        batch = BARE_BATCH if BARE_BATCH in sizes else max(sizes)
        pairs = []
        for pair in self.pairs(batch):
            pairs.append(pair)
            tick(f"bare model loop, batch {batch}")
        return _bare_figures(batch, pairs)

    def pairs(self, batch: int) -> Iterator[tuple[EngineRun, BareRun]]:
        """One batch, recorded once, then in turns through the engine and without it."""
        engine, executor = self.launched.engine, self.launched.executor
        prompts = self.prompts.draw(batch, self._options.prompt_len)
        with recorded(executor) as steps:
            run_batch(engine, prompts, self._options.output_len)
        depth = executor.capabilities().max_in_flight
        for _ in range(self._options.rounds):
            through = run_batch(engine, prompts, self._options.output_len)
            yield through, replay(executor, steps, depth)

    def latency(self, tick: Tick) -> list[Figure]:
        """One request at a time."""
        rounds = []
        for _ in range(self._options.rounds):
            requests = self._options.requests_for(1)
            rounds.append([self._run(1).traces[0] for _ in range(requests)])
            tick("latency")
        return latency_figures("Latency in process", "1 request", rounds)

    def _run(self, batch: int) -> EngineRun:
        prompts = self.prompts.draw(batch, self._options.prompt_len)
        return run_batch(self.launched.engine, prompts, self._options.output_len)

    def _throughput_figures(self, batch: int, runs: Sequence[EngineRun]) -> list[Figure]:
        prompt_tokens = batch * self._options.prompt_len
        decode_steps = self._options.output_len - 1

        def figure(column: str, unit: str, value: Callable[[EngineRun], float]) -> Figure:
            return Figure("Offline", f"batch {batch}", column, unit, tuple(map(value, runs)))

        return [
            figure("prefill", "tokens/s", lambda run: prompt_tokens / run.prefill_seconds),
            figure("decode", "tokens/s", lambda run: run.decode_tokens / run.decode_seconds),
            figure("decode step", "ms", lambda run: 1e3 * run.decode_seconds / decode_steps),
            figure("engine's own", "µs/step", lambda run: 1e6 * run.own_seconds / run.steps),
            figure("own share", "%", lambda run: 100 * run.own_seconds / run.seconds),
        ]


def _bare_figures(batch: int, pairs: Sequence[tuple[EngineRun, BareRun]]) -> list[Figure]:
    def figure(column: str, unit: str, value: Callable[[EngineRun, BareRun], float]) -> Figure:
        rounds = tuple(value(through, bare) for through, bare in pairs)
        return Figure("Engine against the bare model loop", f"batch {batch}", column, unit, rounds)

    return [
        figure("engine", "tokens/s", lambda run, _: run.decode_tokens / run.decode_seconds),
        figure("bare loop", "tokens/s", lambda run, bare: run.decode_tokens / bare.decode_seconds),
        figure(
            "engine / bare loop",
            "× time",
            lambda run, bare: run.decode_seconds / bare.decode_seconds,
        ),
        figure(
            "model / bare loop", "× time", lambda _, bare: bare.device_seconds / bare.decode_seconds
        ),
    ]
