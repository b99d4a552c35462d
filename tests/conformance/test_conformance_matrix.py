"""The matrix of reports: generated, never typed; and the sets of checks that reports answer."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from infercore.executor import API_VERSION
from infercore_conformance import catalogue, required
from infercore_conformance.command import conformance as commands
from infercore_conformance.markdown import as_markdown
from infercore_conformance.matrix import as_matrix, shortened, write_short
from infercore_conformance.report import read_report, schema

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGE = REFERENCE / "conformance.md"
COLUMNS = sorted((REFERENCE / "reports").glob("*.json"))
RECORD = "python -m infercore_conformance.required"
CONTRACT = ".".join(map(str, API_VERSION))


@pytest.fixture
def report() -> Any:
    return read_report(COLUMNS[0])


def status(report: Any, check: str, status: str) -> Any:
    changed = deepcopy(report)
    next(each for each in changed["checks"] if each["id"] == check)["status"] = status
    return changed


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_what_the_stored_reports_make() -> None:
    """From docs/reference: infercore conformance matrix reports/*.json -o conformance.md."""
    assert PAGE.read_text() == as_matrix([read_report(file) for file in COLUMNS])


@pytest.mark.parametrize("file", COLUMNS, ids=lambda file: file.stem)
def test_a_stored_report_is_whole_and_without_a_skip_in_core(file: Path) -> None:
    report = read_report(file)
    jsonschema.validate(report, schema())
    assert report["implementation"]["backend"] == file.stem
    assert report["conformant"]
    assert report["run"]["complete"]
    assert not report["run"]["quick"]
    assert not report["requirements"]["missing"]
    core = {each["status"] for each in report["checks"] if each["level"] == "core"}
    assert core == {"passed"}


def test_a_short_report_holds_nothing_of_the_machine(report: Any, tmp_path: Path) -> None:
    report["environment"] |= {"platform": "Linux-6.1", "variables": {"OMP_PLACES": "cores"}}
    report["checks"][0]["failures"] = [{"case": "a", "outcome": "failed", "message": "/home/me"}]
    short = shortened(report)
    jsonschema.validate(short, schema())
    assert "/home/me" not in json.dumps(short)
    assert short["environment"]["variables"] == {}
    write_short(report, tmp_path / "short.json")
    assert read_report(tmp_path / "short.json") == short
    assert as_matrix([short]) == as_matrix([report])


def cells(page: str) -> dict[str, str]:
    """{check: what the last column says} of a page."""
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if row.startswith("| `")]
    return {row[0].strip("`"): row[-1] for row in rows}


def test_a_cell_says_what_its_report_says(report: Any) -> None:
    first, *rest = [each["id"] for each in report["checks"][:5]]
    said = {
        "failed": "**failed**",
        "not run": "–",
        "undeclared, works": "works, undeclared",
        "undeclared, fails": "–",
    }
    changed = report
    for check, how in zip(rest, said, strict=True):
        changed = status(changed, check, how)
    changed["checks"] = [each for each in changed["checks"] if each["id"] != first]
    found = cells(as_matrix([report, changed]))
    assert [found[check] for check in rest] == list(said.values())
    assert found[first] == "not in this run"


def test_a_run_of_a_part_is_marked_so(report: Any) -> None:
    report["run"]["quick"] = True
    assert "| conformant | yes (quick) |" in as_matrix([report])
    report["run"] |= {"quick": False, "complete": False}
    report["conformant"] = False
    assert "| conformant | **no** (in part) |" in as_matrix([report])


def test_the_command_writes_page_and_short_reports(tmp_path: Path) -> None:
    arguments = ["matrix", *map(str, COLUMNS), "--output", str(tmp_path / "page.md")]
    ended = CliRunner().invoke(commands, [*arguments, "--keep", str(tmp_path / "kept")])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
    for file in COLUMNS:
        assert (tmp_path / "kept" / file.name).read_text() == file.read_text()
    ended = CliRunner().invoke(commands, ["matrix", str(tmp_path / "none.json")])
    assert ended.exit_code == 2
    assert "cannot be read" in ended.output


# --- requirement sets ----------------------------------------------------------------------------


def test_the_suite_asks_for_what_is_recorded() -> None:
    """A check that appears, goes or changes its level waits for the contract's next version."""
    recorded, present = required.recorded(CONTRACT), required.present()
    assert recorded is not None, f"nothing is recorded for contract {CONTRACT}: {RECORD}"
    assert sorted(present) == sorted(recorded), RECORD
    assert present == recorded, RECORD


def test_a_set_is_of_checks_with_levels() -> None:
    for file in required.FOLDER.glob("contract_*.json"):
        record = json.loads(file.read_text())
        assert file.name == f"contract_{record['contract'].replace('.', '_')}.json"
        assert list(record["checks"]) == sorted(record["checks"])
        assert set(record["checks"].values()) <= {"core", "extended", "provisional"}


def test_a_report_says_which_set_it_answers_and_what_it_leaves_open() -> None:
    everything = [entry.check.id for entry in catalogue.entries()]
    whole = required.answered(CONTRACT, [*everything, "acme.fast_path"])
    assert whole == {"contract": CONTRACT, "checks": len(everything), "missing": []}
    part = required.answered(CONTRACT, everything[2:])
    assert part is not None
    assert part["missing"] == sorted(everything[:2])
    assert required.answered("99.0", everything) is None


def test_markdown_says_how_much_of_the_set_was_run(report: Any) -> None:
    report["requirements"] = {"contract": "1.0", "checks": 9, "missing": ["ops.linear"]}
    assert "Of the 9 checks that contract 1.0 asks for, it ran 8." in as_markdown(report)
    del report["requirements"]
    assert "asks for" not in as_markdown(report)
