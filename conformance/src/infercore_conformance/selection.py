"""Which of a session's tests are checks, and which of their cases run."""

from collections.abc import Mapping, Sequence

import pytest

from infercore.capabilities import Capability, Support
from infercore_conformance.checks import Check, check_of
from infercore_conformance.outcomes import Selected


def case_name(check: Check, item: pytest.Item) -> str:
    """The check's id, and the parameters as pytest writes them: "executor.kv.copy[16]"."""
    callspec = getattr(item, "callspec", None)
    return check.id if callspec is None else f"{check.id}[{callspec.id}]"


def declaration(item: pytest.Item) -> Check:
    """Raises UsageError for a test that is none."""
    declared = check_of(item.iter_markers())
    if declared is None:
        raise pytest.UsageError(f"{item.nodeid} is no check; declare it with @check(id, summary)")
    return declared


def require_unique(by_check: Mapping[Check, Sequence[pytest.Item]]) -> None:
    """Raises UsageError where two tests are one check."""
    homes: dict[str, str] = {}
    for check, items in by_check.items():
        for item in items:
            home = item.nodeid.partition("[")[0]
            if homes.setdefault(check.id, home) != home:
                raise pytest.UsageError(f"{homes[check.id]} and {home} both are check {check.id}")


def to_run(answer: Capability, cases: Sequence[pytest.Item]) -> Sequence[pytest.Item]:
    """All cases of what is declared; one, as a probe, of what the vendor never looked at."""
    if answer.support.usable:
        return cases
    return cases[:1] if answer.support is Support.UNKNOWN else ()


def selected(check: Check, answer: Capability, cases: int, *, ran: bool) -> Selected:
    """What a check is, and what the backend says about it, for the record."""
    needs = "" if check.needs is None else str(check.needs)
    support, detail = answer.support.value, answer.detail
    return Selected(
        check.id, check.level, check.summary, needs, support, detail, cases=cases, ran=ran
    )
