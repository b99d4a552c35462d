"""Drives an engine step by step, as its server does."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from infercore.engine.engine import Engine
from infercore.engine.request import FinishReason, Output, Request
from infercore_conformance.engine_answers import Answer

MOST_STEPS = 20_000  # of a check; an engine that needs more goes nowhere


@dataclass
class Driver:
    """Steps an engine, keeps what every request received, and looks after its books."""

    engine: Engine
    received: dict[int, Answer] = field(default_factory=lambda: defaultdict(Answer))
    added: list[int] = field(default_factory=list)

    def add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.engine.add(request)
            self.added.append(request.request_id)

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        for output in outputs:
            self.received[output.request_id].take(output)
        return outputs

    def run(self) -> None:
        """Step until nothing is left to do, and see that nothing is."""
        for _ in range(MOST_STEPS):
            if not self.engine.has_work:
                break
            self.step()
        self.require_done()

    def require_done(self) -> None:
        """Raises AssertionError unless every request ended and everything was given back."""
        unended = [n for n in self.added if self.received[n].reason is None]
        assert not unended, f"requests {unended} never ended"
        stats = self.engine.stats()
        assert not stats.kv_blocks_used, f"{stats.kv_blocks_used} blocks are held by nobody"
        left = stats.running + stats.waiting
        assert not left, f"{left} requests that ended run or wait all the same"

    def require_reasons(self, expected: FinishReason, but: Sequence[int] = ()) -> None:
        """Raises AssertionError if a request, other than those in `but`, ended otherwise."""
        for number in self.added:
            answer = self.received[number]
            assert number in but or answer.reason is expected, (
                f"request {number} ended by {answer.reason}, not {expected}: {answer.error}"
            )
