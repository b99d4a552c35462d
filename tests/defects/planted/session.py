"""Runs the named checks in one pytest session, over the unbroken backend and over the broken ones.

    python -m planted.session RESULT.json ID ...

A check catches a defect if one of its cases fails by its own cause: in the call of the test, by
the exception that the defect names. An AssertionError counts only if the suite itself raised it,
which pytest's failures (nothing was raised, other than was expected) are as well.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import _pytest
import pytest

import infercore_conformance
from infercore_conformance import catalogue, fixtures
from infercore_conformance.checks import Check, check_of
from infercore_conformance.models import served
from infercore_conformance.needs import Need
from infercore_conformance.session import DECLARED
from infercore_conformance.subject import Subject, build
from infercore_conformance.watchdog import limited
from planted.catalogue import DEFECTS
from planted.defect import Defect
from planted.planting import planted

SUITE = str(Path(infercore_conformance.__file__).parent)
PYTEST = str(Path(_pytest.__file__).parent)  # whose `raises` may be what fails
HANGS = 3.0  # seconds until what hangs by design is ended
SETTINGS = Path(infercore_conformance.__file__).with_name("pytest.ini")


@pytest.fixture(scope="session")
def planting(request: pytest.FixtureRequest) -> "Planted":
    chosen: Planted = request.param
    return chosen


@pytest.fixture(scope="session")
def subject(planting: "Planted") -> Subject:
    return planting.subject


@dataclass
class Outcome:
    """What a check came to over one backend.

    caught: by its own cause. failures: every other failure, which is none of a right suite.
    """

    caught: bool = False
    cases: int = 0
    seconds: float = 0.0
    message: str = ""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Planted:
    """A subject and its defect; None is the control."""

    subject: Subject
    defect: Defect | None

    @property
    def name(self) -> str:
        return self.subject.name

    def values(self, argument: str) -> Sequence[Any]:
        """What a check's argument takes."""
        can, limit = self.subject.capabilities, DECLARED[argument]
        return served(can.architectures)[:1] if argument == "architecture" else getattr(can, limit)


class Session:
    """The pytest plugin."""

    def __init__(self, base: Subject, defects: Sequence[Defect]) -> None:
        self._thorough = {defect.caught_by for defect in defects if defect.thorough}
        self._planted: dict[str, list[Planted]] = {}
        for defect in defects:
            self._planted.setdefault(defect.caught_by, []).append(_planted(base, defect))
        for check, needs in _needs().items():  # where the declaration is the defect, no control
            if check in self._planted and (needs is None or needs.answer(base.answers)):
                self._planted[check].append(Planted(base, None))
        self.outcomes: dict[str, dict[str, Outcome]] = {}  # check → subject's name → outcome

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        declared = check_of(metafunc.definition.iter_markers())
        if declared is None or declared.id not in self._planted:
            return
        metafunc.fixturenames.append("planting")
        names = [name for name in DECLARED if name in metafunc.fixturenames]
        cases = [
            pytest.param(chosen, *values, id="-".join([chosen.name, *map(str, values)]))
            for chosen in self._planted[declared.id]
            for values in product(*map(chosen.values, names))
        ]
        metafunc.parametrize(["planting", *names], cases, indirect=["planting"], scope="session")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Cases of the named checks, the control's last; of most checks the quick ones only."""
        items[:] = [
            item
            for item in items
            if "planting" in _parameters(item)
            and (not item.get_closest_marker("thorough") or _check(item).id in self._thorough)
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._outcome(item).caught:
            pytest.skip("it is caught already")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Any:
        with self._limited(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        with self._limited(item):
            return (yield)

    def _limited(self, item: pytest.Item) -> AbstractContextManager[None]:
        defect = _parameters(item)["planting"].defect
        hangs = defect is not None and defect.cause == "Hung"
        return limited(HANGS if hangs else _check(item).timeout)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        outcome = self._outcome(item)
        outcome.seconds += call.duration
        outcome.cases += call.when == "call"
        error = call.excinfo
        if error is not None and not error.errisinstance(pytest.skip.Exception):
            defect = _parameters(item)["planting"].defect
            line = f"{error.typename}: {error.value}".partition("\n")[0]
            if defect is not None and call.when == "call" and _own_cause(defect, error):
                outcome.caught, outcome.message = True, line
            else:
                outcome.failures.append(f"{item.nodeid}, {call.when}: {line}")
        return report

    def _outcome(self, item: pytest.Item) -> Outcome:
        name = _parameters(item)["planting"].name
        return self.outcomes.setdefault(_check(item).id, {}).setdefault(name, Outcome())


def _own_cause(defect: Defect, error: pytest.ExceptionInfo[BaseException]) -> bool:
    if defect.cause != "AssertionError":
        return error.typename == defect.cause
    raised_by_the_suite = str(error.traceback[-1].path).startswith((SUITE, PYTEST))
    return error.errisinstance(pytest.fail.Exception) or (
        error.errisinstance(AssertionError) and raised_by_the_suite
    )


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


def _check(item: pytest.Item) -> Check:
    found = check_of(item.iter_markers())
    assert found is not None, f"{item.nodeid} is no check"
    return found


def _planted(base: Subject, defect: Defect) -> Planted:
    cls = planted(base.cls, defect)
    executor = build(cls)
    can = executor.capabilities()
    return Planted(
        replace(
            base, name=f"{base.name}+{defect.id}", cls=cls, probe=cls.probe(), capabilities=can
        ),
        defect,
    )


def _needs() -> dict[str, Need | None]:
    return {entry.check.id: entry.check.needs for entry in catalogue.entries()}


def run(base: str, defects: Sequence[Defect]) -> dict[str, dict[str, Outcome]]:
    """{check: {backend: what it came to}}, the unbroken `base` among the backends."""
    session = Session(Subject.open(base), defects)
    places = {entry.check.id: entry.place for entry in catalogue.entries()}
    modules = sorted({places[defect.caught_by].partition(":")[0] for defect in defects})
    files = [str(sys.modules[name].__file__) for name in modules]
    status = pytest.main(
        ["-c", str(SETTINGS), "-q", "--tb=no", "-rN", *files],
        plugins=[fixtures, sys.modules[__name__], session],
    )
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {status!r} on {base}")
    return session.outcomes


def run_all(defects: Iterable[Defect]) -> dict[str, dict[str, Outcome]]:
    """Each over its base, one base after another, in this process."""
    by_base: dict[str, list[Defect]] = {}
    for defect in defects:
        by_base.setdefault(defect.base, []).append(defect)
    found: dict[str, dict[str, Outcome]] = {}
    for base, its in by_base.items():
        for check, outcomes in run(base, its).items():
            found.setdefault(check, {}).update(outcomes)
    return found


if __name__ == "__main__":
    _file, *_ids = sys.argv[1:]
    _found = run_all(DEFECTS[name] for name in _ids)
    _plain = {c: {name: asdict(o) for name, o in of.items()} for c, of in _found.items()}
    Path(_file).write_text(json.dumps(_plain, indent=1))
    os._exit(0)  # threads that hang by design would keep Python from ending
