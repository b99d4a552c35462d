"""The engine's own tests, tested: each planted defect fails the test that is there for it.

A test fails by what it asserts: a crash is no catch.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from traceback import extract_tb

import pytest

from scheduler_defects import ALONE, DEFECTS, PASSES, Defect

TESTS = Path(__file__).parents[1]
LEAST = 30
TRAFFICS = 400  # that a property is tried on; each takes some milliseconds
Case = Callable[[], None]


def cases(name: str) -> Iterator[Case]:
    """What a test runs: itself, or a property on one traffic after another."""
    module, _, function = name.partition(".")
    test = getattr(import_module(module), function)
    if name not in (ALONE, PASSES):
        yield _with_first_parameters(test)
        return
    traffic_of = import_module(module).traffic_of
    for seed in range(TRAFFICS):
        traffic = traffic_of(seed, 2 + seed % 8)
        more = () if name == ALONE else (seed % 12, bool(seed & 1), bool(seed & 2))
        yield partial(test.hypothesis.inner_test, traffic, *more)


def _with_first_parameters(test: Callable[..., None]) -> Case:
    marks = getattr(test, "pytestmark", [])
    values = {mark.args[0]: mark.args[1][0] for mark in marks if mark.name == "parametrize"}
    assert values.keys() == signature(test).parameters.keys()
    return lambda: test(**values)


def caught(found: Iterator[Case], defect: Defect) -> Case | None:
    """The first case that fails by the defect's cause, if one does; any other failure is raised."""
    for case in found:
        try:
            case()
        except (defect.cause, pytest.fail.Exception) as error:
            if not _own(error, defect.says):
                raise
            return case
    return None


def _own(error: BaseException, says: str) -> bool:
    """Whether a test asserted it, or else it is what was to come."""
    if says:
        return re.search(says, str(error)) is not None
    where = [frame.filename for frame in extract_tb(error.__traceback__)]
    return isinstance(error, pytest.fail.Exception) or where[-1].startswith(str(TESTS))


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.id)
def test_its_test_catches_a_defect(defect: Defect, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(defect.owner, defect.method, defect.planted())
        case = caught(cases(defect.by), defect)
    assert case is not None, f"{defect.by} passes all the same"
    case()  # without the defect it passes


def test_defects_are_many_and_say_what_they_are() -> None:
    assert len(DEFECTS) >= LEAST
    assert len({defect.id for defect in DEFECTS}) == len(DEFECTS)
    for defect in DEFECTS:
        assert (defect.function.__doc__ or "").endswith("."), f"{defect.id} has no sentence"
