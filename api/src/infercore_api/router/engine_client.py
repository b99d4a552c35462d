"""EngineClient: one engine as the router sees it, whatever lies between."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from infercore.engine.info import EngineInfo
from infercore.engine.request import EngineStats, Output, Request


class Sink(Protocol):
    """Where one request's outputs go. Called on the event loop, in order; nothing in it waits."""

    def token(self, token_id: int, logprob: float | None, now: float) -> None:
        """One more token and nothing else: a streamed token's path. now: time.monotonic."""
        ...

    def output(self, output: Output) -> None:
        """Whatever else comes: first tokens, likeliest tokens, ends. The last has a reason."""
        ...


class EnginePhase(Enum):
    """Where an engine is in its life, as `/health` tells it."""

    STARTING = "starting"  # not connected yet, or restarting
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, takes nothing new
    DEAD = "dead"  # gave up; it will not come back


@dataclass(frozen=True, slots=True)
class EngineState:
    """The phase, and how far it is: done of total, in the phase's own unit."""

    phase: EnginePhase
    done: int = 0
    total: int = 0


class EngineClient(ABC):
    """Carries requests to one engine and outputs back. All methods are called on the event loop."""

    @abstractmethod
    async def start(self) -> None:
        """Connect, and keep connecting; returns at once."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; live requests end with EngineUnavailable."""

    @abstractmethod
    def submit(self, request: Request, sink: Sink) -> None:
        """Send a request. Every request gets exactly one output with a finish reason.

        If the engine dies, that output has reason ERROR and an EngineUnavailable.
        Raises EngineUnavailable when no engine is ready.
        """

    @abstractmethod
    def abort(self, request_id: int) -> None:
        """End a request; nothing more is delivered for it. Unknown ids are ignored."""

    @property
    @abstractmethod
    def state(self) -> EngineState:
        """Phase and progress, from the last message."""

    @property
    @abstractmethod
    def info(self) -> EngineInfo | None:
        """None until the engine was ready for the first time."""

    @property
    @abstractmethod
    def stats(self) -> EngineStats:
        """Counters from the last heartbeat; all zero before it."""
