"""The server over HTTP: latencies and tokens per second by number of streams."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from infercore.errors import ConfigError
from infercore.executor import Progress
from infercore.hub import resolve
from infercore_api.bench.figures import Figure, Trace, latency_figures, output_rate
from infercore_api.bench.offline import Tick
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.prompts import Prompts
from infercore_api.bench.server_process import ServerProcess, cpu_seconds
from infercore_api.bench.sse_client import Target

_ROUTER = "infercore_api.router.main"


@dataclass(frozen=True, slots=True)
class Round:
    """One load. router_seconds: CPU time of the router's process meanwhile, None if unknown."""

    traces: list[Trace]
    router_seconds: float | None

    @property
    def tokens(self) -> int:
        return sum(trace.tokens for trace in self.traces)

    @property
    def failures(self) -> list[str]:
        return [trace.error for trace in self.traces if trace.error]


@dataclass(slots=True)
class Served:
    """What came of it. failures: the error of every request that failed."""

    model: str
    figures: list[Figure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def _server(options: BenchOptions) -> Iterator[ServerProcess | None]:
    if options.url is not None:
        yield None
        return
    arguments = ["--model-id", options.model_id, "--backend", options.backend]
    arguments += ["--dtype", options.dtype]
    if options.threads is not None:
        arguments += ["--threads", str(options.threads)]
    streams = max(options.concurrency)
    arguments += ["--max-concurrent-requests", str(max(128, 2 * streams))]
    with ServerProcess(arguments) as server:
        yield server


def measure_server(options: BenchOptions, progress: Progress, tick: Tick) -> Served:
    """Start a server, or take the one named, and load it. Raises ConfigError if it is not there."""
    model = resolve(options.model_id, None, progress=progress)
    with _server(options) as server:
        target = Target(server.url if server is not None else str(options.url))
        load = Load(target, options, Prompts(model.path, options.seed))
        router = server.child(_ROUTER) if server is not None else None
        served = Served(load.model)
        if server is not None:
            ready = Figure("Start", "server", "ready", "s", (server.ready_seconds,))
            served.figures.append(ready)
        if router is None:
            why = "the server runs elsewhere" if server is None else "/proc is not there"
            served.notes.append(f"The router's CPU time was not measured: {why}.")
        load.round(1, router)  # what is slow only once
        for streams in options.concurrency:
            rounds = []
            for _ in range(options.rounds):
                rounds.append(load.round(streams, router))
                tick(f"HTTP, {streams} streams")
            served.figures += _figures(streams, rounds)
            served.failures += [error for each in rounds for error in each.failures]
        return served


class Load:
    """Requests to one server, of one model."""

    def __init__(self, target: Target, options: BenchOptions, prompts: Prompts) -> None:
        self._target = target
        self._options = options
        self._prompts = prompts
        self.model = served_model(target)

    def round(self, streams: int, router: int | None) -> Round:
        """One round of so many streams at once. router: its process id."""
        count = self._options.requests_for(streams)
        requests = [
            self._target.completion(self.model, prompt, self._options.output_len)
            for prompt in self._prompts.draw(count, self._options.prompt_len)
        ]
        before = cpu_seconds(router) if router is not None else 0.0
        traces = asyncio.run(self._send_all(requests, streams))
        spent = cpu_seconds(router) - before if router is not None else None
        for trace in traces:
            _require_length(trace, self._options.output_len)
        return Round(traces, spent)

    async def _send_all(self, requests: Sequence[bytes], streams: int) -> list[Trace]:
        free = asyncio.Semaphore(streams)

        async def send(request: bytes) -> Trace:
            async with free:
                return await self._target.send(request)

        return await asyncio.gather(*map(send, requests))


def served_model(target: Target) -> str:
    """The first model that the server names. Raises ConfigError if it does not answer."""
    try:
        status, body = target.get("/v1/models")
    except OSError as error:
        where = f"{target.host} port {target.port}"
        raise ConfigError(
            f"no server answers at {where}: {error}; start it, or correct --url"
        ) from error
    if status != 200:
        raise ConfigError(
            f"/v1/models answers with status {status}; is this an OpenAI-like server?"
        )
    name: str = json.loads(body)["data"][0]["id"]
    return name


def _require_length(trace: Trace, output_len: int) -> None:
    """A shorter answer would make every figure look better than it is."""
    if not trace.error and trace.tokens != output_len:
        trace.error = f"{trace.tokens} tokens came where {output_len} were asked for"


def _figures(streams: int, rounds: Sequence[Round]) -> list[Figure]:
    row = f"{streams} streams" if streams > 1 else "1 stream"

    def figure(column: str, unit: str, values: Sequence[float]) -> Figure:
        return Figure("HTTP", row, column, unit, tuple(values))

    figures = [figure("output", "tokens/s", [output_rate(each.traces) for each in rounds])]
    spent = [
        1e6 * each.router_seconds / each.tokens
        for each in rounds
        if each.router_seconds is not None and each.tokens
    ]
    if spent:
        figures.append(figure("router's CPU", "µs/token", spent))
    figures.append(figure("failed requests", "", [len(each.failures) for each in rounds]))
    return figures + latency_figures("HTTP latency", row, [each.traces for each in rounds])
