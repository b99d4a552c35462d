"""How a check is declared: a decorator over a pytest test.

    @check(
        "executor.late.mask",
        "A masked row yields a token that its mask allows.",
        level=Level.EXTENDED,
        needs=Feature("late_inputs"),
    )
    def test_a_mask_binds(running: Running) -> None: ...

The test's docstring, if it has one, is what `infercore conformance explain` adds to the sentence:
why the rule stands and what usually breaks it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import pytest

from infercore_conformance.needs import Need

MARK = "conformance"
TIMEOUT = 120.0  # seconds before a case counts as hung
_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_Test = TypeVar("_Test", bound=Callable[..., object])

thorough = pytest.mark.thorough
"""Marks a test, or one `pytest.param` of it, that `--quick` leaves out."""


class Level(StrEnum):
    """What a check counts for."""

    CORE = "core"  # every backend passes it; nothing excuses it
    EXTENDED = "extended"  # whoever declares the feature passes it
    PROVISIONAL = "provisional"  # run and reported, never scored: the check is new


@dataclass(frozen=True, slots=True)
class Check:
    """A check's declaration.

    id: dotted, its profile first ("executor.in_flight.order"); it never changes its meaning.
    summary: one sentence that is true of a backend which passes.
    needs: the capability that decides whether it runs; None = it always does.
    timeout: seconds per case.
    """

    id: str
    summary: str
    level: Level = Level.CORE
    needs: Need | None = None
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"check {self.id!r}: an id is profile.topic, in lower case")
        if self.level is Level.CORE and self.needs is not None:
            raise ValueError(f"check {self.id}: a Core check needs nothing; make it Extended")
        if self.level is Level.EXTENDED and self.needs is None:
            raise ValueError(f"check {self.id}: an Extended check names the feature that it needs")

    @property
    def profile(self) -> str:
        return self.id.partition(".")[0]


def check(
    id: str,  # noqa: A002 - what everybody calls it
    summary: str,
    *,
    level: Level = Level.CORE,
    needs: Need | None = None,
    timeout: float = TIMEOUT,
) -> Callable[[_Test], _Test]:
    """Declare a pytest test as a check. Raises ValueError for a declaration that cannot be."""
    mark = getattr(pytest.mark, MARK)
    declared: Callable[[_Test], _Test] = mark(Check(id, summary, level, needs, timeout))
    return declared


def check_of(marks: Iterable[Any]) -> Check | None:
    """The declaration among a test's marks."""
    for mark in marks:
        if mark.name == MARK:
            found: Check = mark.args[0]
            return found
    return None
