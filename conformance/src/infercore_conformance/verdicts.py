"""From what the cases came to, what the backend declares and what its vendor expects: a verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from infercore.capabilities import Support
from infercore_conformance.checks import Level
from infercore_conformance.expected import Expected
from infercore_conformance.outcomes import Case, Outcome, Record, Selected


class Status(StrEnum):
    """What a check came to."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"  # the suite's own fault, or a skip that no declaration explains
    NOT_RUN = "not run"  # declared as unsupported or not implemented
    UNDECLARED_WORKS = "undeclared, works"  # the vendor may declare it
    UNDECLARED_FAILS = "undeclared, fails"
    EXPECTED_FAILURE = "expected failure"
    UNEXPECTED_PASS = "unexpected pass"  # noqa: S105 - the entry is to be removed
    EXPIRED = "expired expectation"


BAD = frozenset({Status.FAILED, Status.ERROR, Status.UNEXPECTED_PASS, Status.EXPIRED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """A check's status, its cases, and the entries of the vendor's file that bear on it."""

    check: Selected
    status: Status
    cases: tuple[Case, ...]
    expected: tuple[Expected, ...] = ()

    @property
    def counts_against(self) -> bool:
        """Whether the backend does not conform because of it."""
        return self.status in BAD and self.check.level is not Level.PROVISIONAL


def judge(record: Record, expected: Sequence[Expected], today: date) -> list[Verdict]:
    """A verdict on every check of the run."""
    return [
        _verdict(check, tuple(record.of(check.id)), expected, today)
        for check in record.selected.values()
    ]


def unknown_entries(record: Record, expected: Iterable[Expected]) -> list[str]:
    """Entries that name no check of this suite's run; a misspelt one would excuse nothing."""
    names = record.selected.keys() | record.cases.keys()
    return [entry.check for entry in expected if entry.check not in names]


def _verdict(
    check: Selected, cases: tuple[Case, ...], expected: Sequence[Expected], today: date
) -> Verdict:
    names = {check.id} | {case.name for case in cases}
    entries = tuple(entry for entry in expected if entry.check in names)
    return Verdict(check, _status(check, cases, entries, today), cases, entries)


def _status(
    check: Selected, cases: tuple[Case, ...], entries: tuple[Expected, ...], today: date
) -> Status:
    if not check.ran:
        return Status.NOT_RUN
    bad = [case for case in cases if case.outcome is not Outcome.PASSED]
    if not Support(check.support).usable:
        return Status.UNDECLARED_FAILS if bad else Status.UNDECLARED_WORKS
    if any(case.outcome is Outcome.ERROR for case in bad) or not cases:
        return Status.ERROR
    if any(entry.expired(today) for entry in entries):
        return Status.EXPIRED
    if not all(any(entry.covers(check.id, case.name) for entry in entries) for case in bad):
        return Status.FAILED
    if not all(any(entry.covers(check.id, case.name) for case in bad) for entry in entries):
        return Status.UNEXPECTED_PASS
    return Status.EXPECTED_FAILURE if bad else Status.PASSED
