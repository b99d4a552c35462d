"""Health that tells the truth: ready only when requests are served, dead only when stuck."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from infercore.engine.request import EngineStats
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.options import serve_options
from infercore_api.router.engine_client import EnginePhase, EngineState
from infercore_api.router.step_watch import StepWatch
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server, eventually, serving


class CountedEngine(MemoryEngine):
    """An engine whose phase and counters a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = EngineState(EnginePhase.READY)
        self.counted = EngineStats()

    @property
    def state(self) -> EngineState:
        return self.now

    @property
    def stats(self) -> EngineStats:
        return self.counted


class Clock:
    """Seconds that a test lets pass."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def engine() -> CountedEngine:
    return CountedEngine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(engine: CountedEngine, clock: Clock) -> StepWatch:
    return StepWatch(engine, clock)


def test_steps_and_rest_are_no_stall(engine: CountedEngine, clock: Clock, watch: StepWatch) -> None:
    engine.counted = EngineStats(steps=1, running=1)
    for steps in (2, 3, 4):
        clock.seconds += 60
        engine.counted = EngineStats(steps=steps, running=1)
        assert watch.stalled_seconds() == 0
    for _ in range(3):
        clock.seconds += 60
        engine.counted = EngineStats(steps=4)
        assert watch.stalled_seconds() == 0
    engine.counted = EngineStats(steps=4, failed_steps=1, running=2)
    assert watch.stalled_seconds() == 0, "work has only just come"


@pytest.mark.parametrize("pending", [EngineStats(running=1), EngineStats(waiting=1)])
def test_work_without_a_step_is_a_stall(
    engine: CountedEngine, clock: Clock, watch: StepWatch, pending: EngineStats
) -> None:
    engine.counted = replace(pending, steps=9)
    assert watch.stalled_seconds() == 0
    clock.seconds += 30
    assert watch.stalled_seconds() == 30
    clock.seconds += 30
    assert watch.stalled_seconds() == 60
    engine.counted = replace(pending, steps=9, failed_steps=1)
    assert watch.stalled_seconds() == 0, "a step that failed ended too"


@pytest.mark.parametrize("phase", [EnginePhase.STARTING, EnginePhase.LOADING, EnginePhase.WARMING])
def test_an_engine_that_comes_up_does_not_stall(
    engine: CountedEngine, clock: Clock, watch: StepWatch, phase: EnginePhase
) -> None:
    engine.counted = EngineStats(steps=9, waiting=1)
    watch.stalled_seconds()
    engine.now = EngineState(phase)
    clock.seconds += 600
    assert watch.stalled_seconds() == 0


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.mark.parametrize(
    ("now", "percent"),
    [
        (EngineState(EnginePhase.STARTING), 0),
        (EngineState(EnginePhase.LOADING, 1, 3), 33),
        (EngineState(EnginePhase.WARMING, 3, 4), 75),
        (EngineState(EnginePhase.DRAINING), None),
        (EngineState(EnginePhase.DEAD), None),
    ],
)
async def test_what_is_not_ready_tells_its_phase_and_progress(
    texts: Any, engine: CountedEngine, now: EngineState, percent: int | None
) -> None:
    engine.now = now
    router = Router(texts, engine)
    for path in ("/health/ready", "/health", "/ping", "/"):
        health = await router.http.get(path)
        assert health.status_code == 503
        assert health.json() == {
            "error": "unhealthy", "error_type": "healthcheck", "phase": now.phase.value,
            "percent": percent, "done": now.done, "total": now.total,
        }  # fmt: skip
    assert (await router.http.get("/health/live")).status_code == 200


async def test_alive_is_what_does_not_stall_for_long(
    texts: Any, engine: CountedEngine, clock: Clock
) -> None:
    router = Router(texts, engine, stall_timeout=90.0)
    router.state.step_watch = StepWatch(engine, clock)
    engine.counted = EngineStats(steps=9, running=1)
    for seconds, status in ((0, 200), (89, 200), (1, 503), (600, 503)):
        clock.seconds += seconds
        live = await router.http.get("/health/live")
        assert live.status_code == status
    assert live.json()["stalled_seconds"] == 690.0
    assert live.json()["phase"] == "ready"
    engine.counted = EngineStats(steps=10, running=1)
    assert (await router.http.get("/health/live")).status_code == 200


def test_the_engine_is_given_up_before_the_server() -> None:
    values = {flag.key: flag.default for flag in FLAGS}
    assert serve_options(values).router["stall_timeout"] == 120
    assert serve_options({**values, "step_timeout": 300.0}).router["stall_timeout"] == 600
    assert serve_options({**values, "stall_timeout": 5.0}).router["stall_timeout"] == 5


def get(server: Server, path: str) -> int:
    return httpx2.get(server.url + path, timeout=30).status_code


def generate(server: Server, tokens: int) -> threading.Thread:
    """A request in a thread of its own; what becomes of it is not asked."""
    body = {"inputs": "a", "parameters": {"max_new_tokens": tokens}}

    def run() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            try:
                client.post("/generate", json=body)
            except httpx2.HTTPError:
                return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_hung_engine_makes_the_server_not_alive(folder: Path) -> None:
    env = {"TOY_FAULT": "hang", "TOY_MARK": str(folder / "mark")}
    with serving(folder, "--stall-timeout", "2", toy=True, env=env) as server:
        assert get(server, "/health/live") == 200
        request = generate(server, 5)
        eventually(lambda: get(server, "/health/live") == 503, 30, "it stalls")
        assert get(server, "/health/ready") == 200, "readiness is another question"
    request.join()


def test_a_draining_server_is_alive_and_not_ready(folder: Path) -> None:
    with serving(folder, toy=True) as server:
        request = generate(server, 150)
        eventually(lambda: server.metric("infercore_running_sequences") == 1, 30, "it runs")
        server.process.terminate()
        eventually(lambda: get(server, "/health/ready") == 503, 10, "it drains")
        health = httpx2.get(f"{server.url}/health/ready").json()
        assert (health["phase"], health["percent"]) == ("draining", None)
        assert get(server, "/health/live") == 200
        request.join()
        assert server.process.wait(30) == 0
