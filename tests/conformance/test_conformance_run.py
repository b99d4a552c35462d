"""The command, end to end: on a toy whose checks end in every way, and on the CPU."""

import json
import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from infercore_conformance.command import conformance as commands
from infercore_conformance.report import schema
from toy_backend import install_toy

INFERCORE = Path(sys.executable).with_name("infercore")


def conformance(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [INFERCORE, "conformance", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A run of all of the toy's checks: its folder, the report, and what was printed."""
    folder = tmp_path_factory.mktemp("whole")
    checks = install_toy(folder)
    # a project's own settings do not reach the suite
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    ended = conformance(
        folder, "run", "--backend", "toy", "--profile", "toy", "--own-checks", checks,
        "--report", folder / "report.json", "--markdown", folder / "report.md",
        "--junit", folder / "report.xml",
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return folder, json.loads((folder / "report.json").read_text()), ended.stdout


def by_id(report: Any) -> dict[str, Any]:
    return {check["id"]: check for check in report["checks"]}


def test_every_check_has_the_status_that_it_earned(whole: tuple[Path, Any, str]) -> None:
    _, report, _ = whole
    assert {name: check["status"] for name, check in by_id(report).items()} == {
        "toy.passes": "passed",
        "toy.fails": "failed",
        "toy.sizes": "failed",
        "toy.skips": "error",
        "toy.crashes": "failed",
        "toy.hangs": "failed",
        "toy.stuck": "failed",
        "toy.works": "undeclared, works",
        "toy.broken": "undeclared, fails",
        "toy.refused": "not run",
        "toy.new": "failed",
        "toy.long": "failed",
    }
    assert not report["conformant"]
    assert report["profiles"]["toy"]["provisional"] == {"failed": 1}


def test_a_crash_and_a_hang_end_their_own_case_only(whole: tuple[Path, Any, str]) -> None:
    _, report, _ = whole
    checks = by_id(report)
    assert report["run"]["processes"] == 3
    assert "ended by SIGABRT" in checks["toy.crashes"]["failures"][0]["message"]
    assert "it did not end within 1 s" in checks["toy.hangs"]["failures"][0]["message"]
    assert "it hung, or left by itself" in checks["toy.stuck"]["failures"][0]["message"]


def test_a_failure_says_why(whole: tuple[Path, Any, str]) -> None:
    _, report, printed = whole
    checks = by_id(report)
    assert "arithmetic is broken" in checks["toy.fails"]["failures"][0]["message"]
    assert [f["case"] for f in checks["toy.sizes"]["failures"]] == ["toy.sizes[32]"]
    assert checks["toy.sizes"]["cases"] == 2
    assert "skipped (Skipped: the weather)" in checks["toy.skips"]["failures"][0]["message"]
    assert "arithmetic is broken" in printed
    assert "NOT conformant" in printed


def test_what_is_undeclared_is_probed_once_and_told(whole: tuple[Path, Any, str]) -> None:
    _, report, printed = whole
    works = by_id(report)["toy.works"]
    assert (works["cases"], works["support"], works["needs"]) == (1, "unknown", "graph_capture")
    assert "undeclared, works:\n  toy.works (graph_capture)" in printed
    assert by_id(report)["toy.refused"]["detail"] == "it has one memory"


def test_a_report_says_who_and_how_to_repeat_it(whole: tuple[Path, Any, str]) -> None:
    folder, report, _ = whole
    jsonschema.validate(report, schema())
    who = report["implementation"]
    assert (who["distribution"], who["version"], who["contract"]) == ("acme", "1.2.3", "1.0")
    assert report["hardware"]["devices"] == ["a toy"]
    assert report["capabilities"]["features"]["late_inputs"]["support"] == "full"
    assert report["run"]["command"] == (
        f"infercore conformance run --backend toy --profile toy --own-checks {folder / 'checks'}"
    )
    [figure] = by_id(report)["toy.passes"]["numerics"]
    assert (figure["value"], figure["bound"]) == (0.5, 1.0)
    assert "| toy.passes | core |" in (folder / "report.md").read_text()
    [suite] = ET.parse(folder / "report.xml").getroot()
    assert {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "12",
        "failures": "6",
        "errors": "1",
        "skipped": "3",
    }


EXPECTED = """
[[expected]]
check = "{check}"
reason = "known"
link = "https://tracker.example/1"
expires = {expires}
"""
LATER, PAST = date.today() + timedelta(days=30), date.today() - timedelta(days=1)  # noqa: DTZ011


def test_expected_failures(tmp_path: Path) -> None:
    checks = install_toy(tmp_path)
    file = tmp_path / "expected.toml"
    names = ("toy.fails", "toy.sizes[32]", "toy.passes", "toy.new")
    entries = zip(names, (LATER, LATER, LATER, PAST), strict=True)
    file.write_text("".join(EXPECTED.format(check=name, expires=day) for name, day in entries))
    picked = [word for name in names for word in ("--check", name.partition("[")[0])]
    ended = conformance(
        tmp_path, "run", "--backend", "toy", *picked, "--own-checks", checks,
        "--expected-failures", file, "--report", tmp_path / "report.json",
    )  # fmt: skip
    found = by_id(json.loads((tmp_path / "report.json").read_text()))
    assert {name: check["status"] for name, check in found.items()} == {
        "toy.fails": "expected failure",
        "toy.sizes": "expected failure",
        "toy.passes": "unexpected pass",
        "toy.new": "expired expectation",
    }
    assert ended.returncode == 1
    assert found["toy.fails"]["expected"][0]["link"] == "https://tracker.example/1"


def test_quick_and_green(tmp_path: Path) -> None:
    checks = install_toy(tmp_path)
    arguments = ("run", "--backend", "toy", "--own-checks", checks, "--check", "toy.passes")
    ended = conformance(tmp_path, *arguments, "--check", "toy.long", "--quick")
    assert ended.returncode == 0, ended.stdout
    assert "conformant (quick) (a part of the checks)" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--backend", "tony"), "no backend 'tony' is installed"),
        (("run", "--backend", "toy", "--check", "toy.none"), "no check was selected"),
        (("run", "--backend", "toy", "--own-checks", "plain"), "is no check; declare it with"),
    ],
)
def test_a_run_that_cannot_be_is_said(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    install_toy(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "test_plain.py").write_text("def test_plain(): pass\n")
    ended = conformance(tmp_path, *arguments)
    assert ended.returncode == 2, ended.stdout
    assert message in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--backend", "toy", "--profile", "none"), "there is no profile 'none'"),
        (("run", "--backend", "toy", "--expected-failures", "none.toml"), "none.toml cannot be"),
        (("explain", "toy.none"), "there is no check 'toy.none'"),
        (("list", "--profile", "none"), "there is no profile 'none'"),
        (("compare", "none.json", "none.json"), "none.json cannot be read"),
        (("badge", "none.json"), "none.json cannot be read"),
    ],
)
def test_what_is_refused_at_once(arguments: tuple[str, ...], message: str) -> None:
    ended = CliRunner().invoke(commands, arguments)
    assert ended.exit_code == 2
    assert message in ended.stderr


def test_hardware_that_is_not_there(tmp_path: Path) -> None:
    install_toy(tmp_path, available=False)
    ended = conformance(tmp_path, "run", "--backend", "toy")
    assert ended.returncode == 2
    assert "backend toy cannot run here: its cable is loose" in ended.stderr


def test_reports_are_listed_compared_and_drawn(whole: tuple[Path, Any, str]) -> None:
    folder, _, _ = whole
    report, badge = str(folder / "report.json"), folder / "badge.svg"
    for arguments, printed in (
        (("list", "--profile", "executor"), "executor.step.id (core)"),
        (("explain", "executor.step.id"), "bears the id of the step"),
        (("compare", report, report), "nothing changed"),
        (("badge", report), "1.0 not conformant"),
        (("badge", report, "-o", str(badge)), ""),
    ):
        ended = CliRunner().invoke(commands, arguments)
        assert ended.exit_code == 0, ended.output
        assert printed in ended.stdout
    assert "not conformant" in badge.read_text()


def test_without_a_backend_the_plugin_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "infercore_conformance.plugin", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


def test_the_cpu_passes_some_checks(tmp_path: Path) -> None:
    """All of them take minutes; these go through every part of the contract once."""
    names = ("step.result", "kv.shared", "late.mask", "in_flight.follow", "reset.forgets")
    picked = [word for name in names for word in ("--check", f"executor.{name}")]
    ended = conformance(tmp_path, "run", "--backend", "cpu", *picked)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "executor     core         3 passed" in ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cpu_is_conformant(tmp_path: Path) -> None:
    ended = conformance(tmp_path, "run", "--backend", "cpu")
    assert ended.returncode == 0, ended.stdout + ended.stderr
