"""Grammars: what a request may say next is told to its step while that runs."""

from dataclasses import dataclass, replace

from infercore.engine.request import Constraint, FinishReason
from infercore.step import UInt32
from infercore_conformance import Feature, Level, check
from infercore_conformance.engine_fixtures import Same, Serve
from infercore_conformance.engine_serving import TOGETHER
from infercore_conformance.engine_traffic import traffic

GROUPS = ((5, 6, 7, 8), (31, 32, 33), (0, 159, 64, 63))  # ids that may come, in turn
BOUND = (1, 2, 6)  # requests with a grammar, each at another place of it


@dataclass
class InTurn:
    """A grammar: each token is one of the next group, from `first` on, and the groups repeat."""

    first: int
    accepted: int = 0

    @property
    def allowed(self) -> tuple[int, ...]:
        return GROUPS[(self.first + self.accepted) % len(GROUPS)]

    def accept(self, token_id: int) -> None:
        assert token_id in self.allowed, f"token {token_id}, and only {self.allowed} may come"
        self.accepted += 1

    def fill(self, bitmask: UInt32) -> None:
        for token in self.allowed:
            bitmask[token // 32] |= 1 << token % 32

    def fresh(self) -> Constraint:
        return InTurn(self.first)


@check(
    "engine.masks",
    "A grammar binds its request at every token, and no other, with a step ahead or not.",
    level=Level.EXTENDED,
    needs=Feature("late_inputs"),
)
def test_grammars(serve: Serve, same: Same) -> None:
    """A mask is made when the token before is known, which may be after the step was submitted."""
    serving, free = serve(), traffic(8)
    bound = [
        replace(each, constraint=InTurn(each.request_id)) if each.request_id in BOUND else each
        for each in free
    ]
    plain = serving.drive(bound, TOGETHER)
    ahead = serving.drive(bound, replace(TOGETHER, step_ahead=True))
    for driver in (plain, ahead):
        driver.require_reasons(FinishReason.LENGTH)
        for number in BOUND:
            for place, token in enumerate(driver.received[number].tokens):
                assert token in GROUPS[(number + place) % len(GROUPS)], f"token {place} is {token}"
    others = [each for each in free if each.request_id not in BOUND]
    unmasked = serving.answers(free, TOGETHER)
    same(serving, others, unmasked, plain.received)
    same(serving, others, unmasked, ahead.received)
    assert all(plain.received[n].tokens == ahead.received[n].tokens for n in BOUND), (
        "a grammar's tokens depend on whether a step is ahead"
    )
