"""One pytest session over one backend: which checks run, and what each of their cases came to."""

from collections import defaultdict
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infercore.capabilities import FULL, Capability
from infercore.errors import InferCoreError
from infercore_conformance.checks import Check
from infercore_conformance.environment import subject_facts
from infercore_conformance.expected import read_expected
from infercore_conformance.models import served
from infercore_conformance.outcomes import Case, Figure, Journal, Outcome
from infercore_conformance.selection import case_name, declaration, require_unique, selected, to_run
from infercore_conformance.subject import Subject
from infercore_conformance.watchdog import limited

FIGURES = pytest.StashKey[list[Figure]]()
# test arguments that take every declared value, and the list in `Capabilities` that holds them
# (`architecture`: what `models.served` makes of it)
DECLARED = {
    "dtype": "dtypes",
    "kv_dtype": "kv_dtypes",
    "block_size": "block_sizes",
    "architecture": "architectures",
}
# exit statuses of a pytest session that ran all that it was to run
COMPLETE = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
SET_UP = 600.0  # seconds
Report = pytest.TestReport


@dataclass(slots=True)
class _Running:
    """The case that runs: what went wrong in its set-up, call and tear-down, and their time."""

    faults: list[tuple[Outcome, str]] = field(default_factory=list)
    seconds: float = 0.0


class Session:
    """The hooks of a conformance run."""

    def __init__(self, config: pytest.Config) -> None:
        options: Any = config.option
        try:
            self.subject = Subject.open(options.conformance_backend)
            self._expected = read_expected(options.conformance_expected)
        except InferCoreError as error:
            raise pytest.UsageError(str(error)) from error
        self._profiles: list[str] = options.conformance_profile
        self._checks: list[str] = options.conformance_check
        self._quick: bool = options.conformance_quick
        file: Path | None = options.conformance_journal
        self._journal = None if file is None else Journal(file)
        self._done = set() if self._journal is None else set(self._journal.read().cases)
        self._cases: dict[str, tuple[Check, str, bool]] = {}  # node id → check, case, declared
        self._running = _Running()

    # --- which cases run ---------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Arguments in DECLARED take what the backend declares, best first."""
        for argument, limit in DECLARED.items():
            if argument in metafunc.fixturenames:
                values = self._declared(limit)
                # every family takes long; every dtype and block size is but a load
                few = self._quick and argument == "architecture"
                metafunc.parametrize(argument, values[:1] if few else values)

    def _declared(self, limit: str) -> tuple[Any, ...]:
        values: Any = getattr(self.subject.capabilities, limit)
        return served(values) if limit == "architectures" else values

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        by_check: dict[Check, list[pytest.Item]] = defaultdict(list)
        for item in items:
            by_check[declaration(item)].append(item)
        require_unique(by_check)
        kept: list[pytest.Item] = []
        told = []
        for check, cases in by_check.items():
            wanted = [item for item in cases if self._wanted(check, item)]
            if wanted:
                answer = FULL if check.needs is None else check.needs.answer(self.subject.answers)
                ran = to_run(answer, wanted)
                kept += [item for item in ran if self._admit(check, item, answer)]
                told.append(selected(check, answer, len(wanted), ran=bool(ran)))
        staying = set(kept)
        left_out = [item for item in items if item not in staying]
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
        if self._journal is not None:
            self._journal.subject(subject_facts(self.subject))
            self._journal.selected(told)

    def _wanted(self, check: Check, item: pytest.Item) -> bool:
        return (
            (not self._profiles or check.profile in self._profiles)
            and (not self._checks or check.id in self._checks)
            and not (self._quick and item.get_closest_marker("thorough"))
        )

    def _admit(self, check: Check, item: pytest.Item, answer: Capability) -> bool:
        """Whether a case runs in this process: an earlier one may have ended in a crash."""
        case = case_name(check, item)
        self._cases[item.nodeid] = check, case, answer.support.usable
        return case not in self._done

    # --- what they come to -------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        check, case, _ = self._cases[item.nodeid]
        if self._journal is not None:
            self._journal.begin(check.id, case)
        self._running = _Running()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        # loading may compile, and takes as long as it takes
        with self._limited(item, at_least=SET_UP):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        with self._limited(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        with self._limited(item):
            return (yield)

    def _limited(self, item: pytest.Item, at_least: float = 0.0) -> AbstractContextManager[None]:
        check, _, _ = self._cases[item.nodeid]
        return limited(max(check.timeout, at_least))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Report, Report]:
        report = yield
        running = self._running
        running.seconds += report.duration
        if report.skipped:
            report.outcome = "failed"
            report.longrepr = f"skipped ({_reason(report)}); only a declared capability skips"
            running.faults.append((Outcome.ERROR, str(report.longrepr)))
        elif report.failed:
            running.faults.append((Outcome.FAILED, report.longreprtext))
        self._excuse(item, report)
        if report.when == "teardown":
            self._end(item)
        return report

    def _excuse(self, item: pytest.Item, report: Report) -> None:
        """Show as no failure what is none; the record keeps what happened."""
        check, case, declared = self._cases[item.nodeid]
        if not report.failed:
            return
        today = datetime.now(UTC).date()
        excuses = [e for e in self._expected if e.covers(check.id, case) and not e.expired(today)]
        if excuses:
            report.outcome = "skipped"
            report.wasxfail = excuses[0].reason
        elif not declared:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, "not declared, and does not work")

    def _end(self, item: pytest.Item) -> None:
        check, name, _ = self._cases[item.nodeid]
        faults, seconds = self._running.faults, self._running.seconds
        outcomes = [Outcome.PASSED, *(outcome for outcome, _ in faults)]
        outcome = max(outcomes, key=list(Outcome).index)
        message = "\n".join(text for _, text in faults)
        measured: list[Figure] = item.stash.setdefault(FIGURES, [])
        if self._journal is not None:
            self._journal.case(Case(check.id, name, outcome, seconds, message, tuple(measured)))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._journal is not None and exitstatus in COMPLETE:
            self._journal.finish()


def _reason(report: Report) -> str:
    where = report.longrepr
    return where[2] if isinstance(where, tuple) else str(where or "an expected failure")
