"""What one case of a check came to, as the pytest process tells it, line by line, to a file.

A line is written when something happens and not later, so that a crash loses nothing: the case
that had begun and never ended is the one that crashed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from infercore_conformance.checks import Level


class Outcome(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"  # the suite's own fault, or a skip


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a check measured. `bound` is the most that it may be, None = only reported."""

    name: str
    value: float
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a check's test: with parameters, one of several ("executor.kv.copy[16]")."""

    check: str
    name: str
    outcome: Outcome
    seconds: float
    message: str = ""
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True)
class Selected:
    """A check of this run, and what the backend declares about what it needs.

    support: a value of `capabilities.Support`, "full" for a check that needs nothing.
    cases: how many were collected; `ran` is False where the declaration keeps them from running.
    """

    id: str
    level: Level
    summary: str
    needs: str
    support: str
    detail: str
    cases: int
    ran: bool

    @property
    def profile(self) -> str:
        return self.id.partition(".")[0]


@dataclass(slots=True)
class Record:
    """Everything that a run's processes told."""

    subject: Mapping[str, Any] = field(default_factory=dict)
    selected: dict[str, Selected] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)
    begun: tuple[str, str] | None = None  # (check, case) that has not ended
    finished: bool = False

    def of(self, check: str) -> list[Case]:
        return [case for case in self.cases.values() if case.check == check]


class Journal:
    """The file of a run; `read` makes a Record of it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def subject(self, facts: Mapping[str, Any]) -> None:
        self._write("subject", facts)

    def selected(self, checks: Iterable[Selected]) -> None:
        for check in checks:
            self._write("selected", asdict(check))

    def begin(self, check: str, case: str) -> None:
        self._write("begin", {"check": check, "case": case})

    def case(self, case: Case) -> None:
        self._write("case", asdict(case))

    def finish(self) -> None:
        self._write("finish", {})

    def read(self) -> Record:
        record = Record()
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                event = json.loads(line)
                _take(record, event.pop("event"), event)
        return record

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")


def _take(record: Record, event: str, facts: dict[str, Any]) -> None:
    match event:
        case "subject":
            record.subject = facts
        case "selected":
            record.selected[facts["id"]] = Selected(**{**facts, "level": Level(facts["level"])})
        case "begin":
            record.begun = facts["check"], facts["case"]
        case "case":
            figures = tuple(Figure(**figure) for figure in facts["figures"])
            outcome = Outcome(facts["outcome"])
            case = Case(**{**facts, "outcome": outcome, "figures": figures})
            record.cases[case.name] = case
            record.begun = None
        case "finish":
            record.finished = True
