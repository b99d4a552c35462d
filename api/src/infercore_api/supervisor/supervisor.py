"""Starts router and engine, restarts what dies, ends both.

start ─▶ both run ──a child dies──▶ back-off ─▶ start it again ──5 deaths in 5 min──▶ give up
│ └──a child refuses its first start──▶ show why, exit with its code
└──SIGTERM, SIGINT──▶ router drains ─▶ engine ends ─▶ exit; a second one: at once
"""

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from infercore.child import ExitCode
from infercore.errors import ConfigError, InferCoreError
from infercore_api.supervisor.child_process import ChildProcess, ChildSpec
from infercore_api.supervisor.run_directory import RunDirectory

log = logging.getLogger(__name__)

MAX_DEATHS, DEATH_WINDOW_SECONDS = 5, 300.0
_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.2, 10.0
_ENGINE_END_SECONDS = 3.0
_ROUTER_END_SECONDS = 5.0  # beyond its graceful timeout: closing connections
_STACKS_SECONDS = 1.0  # from SIGABRT, which prints stacks, to SIGKILL


class Observer(Protocol):
    """Is told what happens, to show it."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """The engine loads."""

    def ready(self, info: Mapping[str, Any]) -> None:
        """Requests are served, now or again. info: the fields of EngineInfo."""


class Refused(ConfigError):
    """A child refused its first start; carries its message and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CrashLoop(InferCoreError):
    """A child died too often to be started again."""

    exit_code = ExitCode.CRASH_LOOP


class Supervisor:
    """Runs one engine and one router until a signal, or until one of them cannot run.

    engine: None where somebody else runs it; then only the router is kept.
    silence: seconds without a heartbeat after which a ready engine is killed.
    graceful_timeout: seconds that live requests are given to finish.
    """

    def __init__(
        self,
        engine: ChildSpec | None,
        router: ChildSpec,
        directory: RunDirectory,
        observer: Observer,
        *,
        silence: float,
        graceful_timeout: float,
    ) -> None:
        self._specs = (router,) if engine is None else (engine, router)
        self._engine_name, self._router_name = "engine", router.name
        self._directory = directory
        self._observer = observer
        self._silence = silence
        self._graceful_timeout = graceful_timeout
        self._children: dict[str, ChildProcess] = {}
        self._was_ready: set[str] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Returns the exit code. Raises Refused or CrashLoop, with no child left behind."""
        signals: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, signals.put_nowait, signum)
        keepers = [asyncio.create_task(self._keep(spec)) for spec in self._specs]
        asked = asyncio.create_task(signals.get())
        watch = asyncio.create_task(self._watch_engine())
        try:
            await asyncio.wait({*keepers, asked, watch}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (task for task in (*keepers, watch) if task.done()):
                await ended  # raises: none returns before we stop
            return await self._stop(signals)
        finally:
            tasks = (*keepers, asked, watch)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._kill_all()

    async def _keep(self, spec: ChildSpec) -> None:
        """Start a child again and again. Returns when we stop; raises Refused or CrashLoop."""
        deaths: deque[float] = deque()
        while not self._stopping.is_set():
            child = await ChildProcess.start(spec)
            self._children[spec.name] = child
            self._directory.remember(spec.name, child.process.pid)
            code = await child.run(lambda report, facts: self._hear(spec.name, report, facts))
            if self._stopping.is_set():
                return
            refusal = child.refusal
            if refusal is not None and spec.name not in self._was_ready:
                raise Refused(refusal["message"], refusal["exit_code"])
            deaths.append(time.monotonic())
            while deaths[-1] - deaths[0] > DEATH_WINDOW_SECONDS:
                deaths.popleft()  # so a death after long health is mended as fast as the first
            if len(deaths) == MAX_DEATHS:
                raise CrashLoop(
                    f"the {spec.name} died {MAX_DEATHS} times in "
                    f"{deaths[-1] - deaths[0]:.0f} s, last {_describe(code)}; its log above says "
                    "why. Start again once that is mended"
                )
            delay = min(_BACKOFF_SECONDS * 2 ** (len(deaths) - 1), _MAX_BACKOFF_SECONDS)
            why = f": {refusal['message']}" if refusal is not None else ""
            log.error(
                "the %s died (%s)%s; starting it again in %.1f s",
                *(spec.name, _describe(code), why, delay),
            )
            await asyncio.sleep(delay)

    def _hear(self, name: str, report: str, facts: Mapping[str, Any]) -> None:
        if report == "progress":
            self._observer.progress(facts["phase"], facts["done"], facts["total"])
        elif report == "ready":
            self._was_ready.add(name)
            if name == self._router_name:  # it says so each time that an engine is ready for it
                self._observer.ready(facts["info"])

    async def _watch_engine(self) -> None:
        """Kill an engine that was ready and fell silent; its keeper starts it again."""
        pause = min(1.0, self._silence / 4)
        while True:
            await asyncio.sleep(pause)
            engine = self._children.get(self._engine_name)
            if engine is None or not self._is_silent(engine):
                continue
            await asyncio.sleep(pause)  # if this process was stopped itself, it reads up first
            if self._is_silent(engine):
                silence = time.monotonic() - engine.heard
                log.critical("the engine gave no sign of life for %.1f s; killing it", silence)
                engine.send(signal.SIGABRT)
                await asyncio.sleep(_STACKS_SECONDS)
                engine.send(signal.SIGKILL)
                await engine.process.wait()

    def _is_silent(self, engine: ChildProcess) -> bool:
        runs = engine.ready and engine.process.returncode is None
        return runs and time.monotonic() - engine.heard > self._silence

    async def _stop(self, signals: "asyncio.Queue[int]") -> int:
        """End the router, then the engine; a second signal ends both at once."""
        self._stopping.set()
        log.info("stopping: live requests have %.0f s to finish", self._graceful_timeout)
        ending = asyncio.create_task(self._end_in_order())
        again = asyncio.create_task(signals.get())
        await asyncio.wait({ending, again}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        again.cancel()
        return 128 + again.result() if again.done() else ending.result()

    async def _end_in_order(self) -> int:
        router_seconds = self._graceful_timeout + _ROUTER_END_SECONDS
        router = await self._end(self._router_name, router_seconds)
        await self._end(self._engine_name, _ENGINE_END_SECONDS)
        return ExitCode.DRAIN_TIMEOUT if router == ExitCode.DRAIN_TIMEOUT else 0

    async def _end(self, name: str, seconds: float) -> int | None:
        child = self._children.get(name)
        if child is None:
            return None
        child.send(signal.SIGTERM)
        try:
            return await asyncio.wait_for(child.process.wait(), seconds)
        except TimeoutError:
            log.warning("the %s did not end in %.0f s; killing it", name, seconds)
            child.send(signal.SIGKILL)
            return await child.process.wait()

    async def _kill_all(self) -> None:
        for child in self._children.values():
            child.send(signal.SIGKILL)
            await child.process.wait()


def _describe(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    known = {each.value: each.name.lower().replace("_", " ") for each in ExitCode}
    return f"exit code {code}" + (f", {known[code]}" if code in known else "")
