"""The suite itself, tested: every planted defect is caught by the check that it names."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from infercore_conformance import catalogue
from planted import named
from planted.catalogue import DEFECTS
from planted.defect import Defect
from planted.environment import environment
from planted.named import Verdict, verdicts

LEAST = 80
LONGEST = 15  # lines of a defect, its declaration aside
# checks without a defect, and why none can be planted
UNPLANTED: dict[str, str] = {}
# profiles whose checks hold core's own processes too, which no backend can break: not each has one
OTHERWISE = ("distributed", "http")
INFERCORE = Path(sys.executable).with_name("infercore")
QUICK = [defect for defect in DEFECTS.values() if not defect.slow]
SLOW = [defect for defect in DEFECTS.values() if defect.slow]


@pytest.fixture(scope="module")
def quick() -> dict[str, Verdict]:
    return {verdict.defect.id: verdict for verdict in verdicts(QUICK)}


@pytest.fixture(scope="module")
def slow() -> dict[str, Verdict]:
    return {verdict.defect.id: verdict for verdict in verdicts(SLOW)}


@pytest.mark.timeout(named.LONGEST)
@pytest.mark.parametrize("defect", QUICK, ids=lambda defect: defect.id)
def test_its_check_catches_a_defect(defect: Defect, quick: dict[str, Verdict]) -> None:
    assert quick[defect.id].good, str(quick[defect.id])


@pytest.mark.slow
@pytest.mark.timeout(named.LONGEST)
@pytest.mark.parametrize("defect", SLOW, ids=lambda defect: defect.id)
def test_its_slow_check_catches_a_defect(defect: Defect, slow: dict[str, Verdict]) -> None:
    assert slow[defect.id].good, str(slow[defect.id])


def test_defects_are_many_and_small() -> None:
    assert len(DEFECTS) >= LEAST
    checks = {entry.check.id for entry in catalogue.entries()}
    for defect in DEFECTS.values():
        assert defect.caught_by in checks, f"{defect.id} names no check"
        assert defect.sentence.endswith("."), f"{defect.id} has no sentence"
        lines = inspect.getsource(defect.function).splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("def "))
        assert len(lines) - start <= LONGEST, f"{defect.id} takes {len(lines) - start} lines"


def test_every_check_has_a_defect() -> None:
    """What fails for nobody may check nothing."""
    checks = {entry.check.id: entry.check.profile for entry in catalogue.entries()}
    caught = {defect.caught_by for defect in DEFECTS.values()}
    without = {name for name, profile in checks.items() if profile not in OTHERWISE} - caught
    assert without == UNPLANTED.keys()


def crashes(step: object) -> object:
    """It fails for a reason that has nothing to do with what the check looks for."""
    raise RuntimeError("a crash elsewhere")


def test_a_crash_is_no_catch(monkeypatch: pytest.MonkeyPatch) -> None:
    from planted import session

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as in a process of its own
    defect = Defect("crashes", "It crashes.", "step", "executor.step.id", crashes)
    outcome = session.run("cpu", [defect])["executor.step.id"]
    assert not outcome["cpu+crashes"].caught
    assert "RuntimeError: a crash elsewhere" in outcome["cpu+crashes"].failures[0]
    assert not outcome["cpu"].failures


def test_a_defect_is_a_backend_to_the_command(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [INFERCORE, "conformance", "run", "--backend", "cpu+masks_are_dropped"]
    command += ["--check", "executor.late.mask", "--check", "executor.step.id"]
    with environment() as variables:
        ended = subprocess.run(
            [*map(str, command), "--report", str(report)],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    statuses = {c["id"]: c["status"] for c in json.loads(report.read_text())["checks"]}
    assert statuses == {"executor.late.mask": "failed", "executor.step.id": "passed"}
