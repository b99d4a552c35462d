"""From outcomes, declarations and expectations to a verdict, a report and what is made of it."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema  # type: ignore[import-untyped]
import pytest

from infercore.errors import ConfigError
from infercore_conformance.badge import draw
from infercore_conformance.checks import Level
from infercore_conformance.comparison import compared
from infercore_conformance.expected import Expected, read_expected
from infercore_conformance.markdown import as_markdown
from infercore_conformance.outcomes import Case, Figure, Journal, Outcome, Record, Selected
from infercore_conformance.report import Report, Run, make_report, read_report, schema, write_report
from infercore_conformance.summary import summary
from infercore_conformance.verdicts import Status, judge, unknown_entries

TODAY = date(2027, 1, 15)
PASSED, FAILED, ERROR = Outcome.PASSED, Outcome.FAILED, Outcome.ERROR
RUN = Run(
    "infercore conformance run --backend toy",
    datetime(2027, 1, 15, tzinfo=UTC),
    1.5,
    False,
    True,
    1,
)
SUBJECT = {
    "implementation": {
        "backend": "toy",
        "distribution": "acme",
        "version": "1.2",
        "contract": "1.0",
        "summary": "",
        "url": "",
    },
    "contract": "1.0",
    "hardware": {"devices": ["a toy"]},
    "capabilities": {
        "limits": {"dtypes": ["float32"]},
        "features": {"late_inputs": {"support": "full", "detail": ""}},
    },
    "environment": {
        "python": "3.11",
        "platform": "any",
        "machine": "any",
        "packages": {},
        "variables": {},
    },
}


def expected(check: str, expires: date = date(2027, 2, 1)) -> Expected:
    return Expected(check, "not yet", "https://tracker.example/1", expires)


def record(
    *outcomes: Outcome, support: str = "full", level: Level = Level.CORE, ran: bool = True
) -> Record:
    """One check, toy.one, with a case for each outcome."""
    check = Selected("toy.one", level, "It is so.", "", support, "", len(outcomes), ran)
    cases = {}
    for number, outcome in enumerate(outcomes):
        name = f"toy.one[{number}]"
        message = "" if outcome is PASSED else "E   it is not so"
        figures = (Figure("distance", 0.1 * number, 1.0),)
        cases[name] = Case("toy.one", name, outcome, 0.25, message, figures)
    return Record(SUBJECT, {"toy.one": check}, cases, None, finished=True)


BOTH = [expected("toy.one[0]"), expected("toy.one[1]")]


@pytest.mark.parametrize(
    ("made", "entries", "status", "against"),
    [
        (record(PASSED, PASSED), [], Status.PASSED, False),
        (record(PASSED, FAILED), [], Status.FAILED, True),
        (record(FAILED, ERROR), [], Status.ERROR, True),
        (record(), [], Status.ERROR, True),
        (record(ran=False, support="unsupported"), [], Status.NOT_RUN, False),
        (record(ran=False, support="not implemented"), [], Status.NOT_RUN, False),
        (record(PASSED, support="unknown"), [], Status.UNDECLARED_WORKS, False),
        (record(FAILED, support="unknown"), [], Status.UNDECLARED_FAILS, False),
        (record(FAILED, support="versioned"), [], Status.FAILED, True),
        (record(FAILED, level=Level.PROVISIONAL), [], Status.FAILED, False),
        (record(FAILED), [expected("toy.one")], Status.EXPECTED_FAILURE, False),
        (record(PASSED, FAILED), [expected("toy.one")], Status.EXPECTED_FAILURE, False),
        (record(PASSED, FAILED), [expected("toy.one[1]")], Status.EXPECTED_FAILURE, False),
        (record(FAILED, FAILED), [expected("toy.one[1]")], Status.FAILED, True),
        (record(PASSED, PASSED), [expected("toy.one")], Status.UNEXPECTED_PASS, True),
        (record(PASSED, FAILED), BOTH, Status.UNEXPECTED_PASS, True),
        (record(FAILED), [expected("toy.one", date(2027, 1, 14))], Status.EXPIRED, True),
        (record(FAILED), [expected("toy.one", TODAY)], Status.EXPECTED_FAILURE, False),
        (record(ERROR), [expected("toy.one")], Status.ERROR, True),
    ],
)  # fmt: skip
def test_a_verdict(made: Record, entries: list[Expected], status: Status, against: bool) -> None:
    [verdict] = judge(made, entries, TODAY)
    assert verdict.status is status
    assert verdict.counts_against is against


def test_entries_that_name_no_check() -> None:
    made = record(PASSED)
    entries = [expected("toy.one"), expected("toy.one[0]"), expected("toy.tow")]
    assert unknown_entries(made, entries) == ["toy.tow"]


ENTRY = """
[[expected]]
check = "toy.one"
reason = "not yet"
link = "https://tracker.example/1"
expires = 2027-02-01
"""


def test_expected_failures_are_read(tmp_path: Path) -> None:
    file = tmp_path / "expected.toml"
    file.write_text(ENTRY)
    assert read_expected(file) == [expected("toy.one")]
    assert not read_expected(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[expected]\n", "cannot be read"),
        ("[[expect]]\n", "entries and nothing else"),
        ("expected = 3\n", "entries and nothing else"),
        ("expected = [3]\n", "entry 1 needs check, reason, link, expires"),
        (ENTRY.replace("link", "url"), "entry 1 needs check, reason, link, expires"),
        (ENTRY.replace('"not yet"', '""'), "reason is '', not a text that is not empty"),
        (ENTRY.replace("2027-02-01", '"soon"'), "expires is 'soon', not a date such as"),
        (ENTRY.replace("2027-02-01", "2027-02-01T00:00:00"), "not a date such as"),
        (ENTRY + ENTRY, "toy.one is listed twice"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "expected.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_expected(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_expected(tmp_path / "none.toml")


def report(*outcomes: Outcome, **options: object) -> Report:
    return make_report(record(*outcomes, **options), RUN, [], TODAY)  # type: ignore[arg-type]


def test_a_report_keeps_to_its_schema(tmp_path: Path) -> None:
    published = schema()
    jsonschema.Draft202012Validator.check_schema(published)
    for made in (report(PASSED, FAILED), report(ran=False, support="unsupported")):
        jsonschema.validate(made, published)
        write_report(made, tmp_path / "deep" / "report.json")
        assert read_report(tmp_path / "deep" / "report.json") == made


def test_the_schema_knows_every_status_and_refuses_another() -> None:
    definitions = schema()["$defs"]
    assert set(definitions["status"]["enum"]) == set(Status)
    broken = report(PASSED)
    broken["checks"][0]["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema())


def test_figures_are_reported_where_all_passed() -> None:
    [check] = report(PASSED, PASSED, PASSED)["checks"]
    [figure] = check["numerics"]
    assert figure == {
        "name": "distance",
        "value": 0.2,
        "bound": 1.0,
        "case": "toy.one[2]",
        "of": 3,
    }


def test_a_figure_that_is_no_number_is_the_worst() -> None:
    made = record(PASSED, FAILED)
    first = made.cases["toy.one[0]"]
    made.cases["toy.one[0]"] = replace(first, figures=(Figure("distance", float("nan"), 1.0),))
    text = json.dumps(make_report(made, RUN, [], TODAY), allow_nan=False)
    [figure] = json.loads(text)["checks"][0]["numerics"]
    assert (figure["value"], figure["case"]) == (None, "toy.one[0]")


def test_a_file_that_is_no_report(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for text in ("", "[]", '{"schema": 99}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"cannot be read|is no conformance report"):
            read_report(file)


def test_the_summary_says_what_failed_and_why() -> None:
    text = summary(report(PASSED, FAILED))
    for line in (
        "acme 1.2, backend toy",
        "1 failed",
        "failed: toy.one (core)",
        "It is so.",
        "it is not so",
        "NOT conformant, contract 1.0",
    ):
        assert line in text
    assert "undeclared, works:\n  toy.one" in summary(report(PASSED, support="unknown"))


def test_markdown_has_a_row_per_check_and_figure() -> None:
    text = as_markdown(report(PASSED, FAILED))
    assert "| toy.one | core |  | failed | 2 | 0.50 |" in text
    assert "| toy.one | distance | 0.1 | 1 |" in text


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (report(PASSED), "1.0 core + 0 extended"),
        (report(FAILED), "1.0 not conformant"),
        (make_report(record(PASSED), replace(RUN, quick=True), [], TODAY), "1.0 partly run"),
    ],
)
def test_a_badge_is_a_picture_that_says_it(made: Report, words: str) -> None:
    picture = ET.fromstring(draw(made))
    assert picture.attrib["aria-label"] == f"InferCore: {words}"


def test_comparing_reports() -> None:
    good, bad = report(PASSED, PASSED), report(PASSED, FAILED)
    text, worse = compared(good, bad)
    assert "toy.one: passed → failed" in text
    assert worse
    text, worse = compared(bad, good)
    assert not worse
    text, worse = compared(good, good)
    assert text.endswith("nothing changed")
    text, _ = compared(good, report(PASSED, PASSED, PASSED))
    assert "toy.one: distance 0.1 → 0.2" in text
    nothing = make_report(Record(SUBJECT), RUN, [], TODAY)
    assert "toy.one: no longer run" in compared(good, nothing)[0]
    assert "toy.one: new, passed" in compared(nothing, good)[0]
    assert not nothing["conformant"], "nothing was run, so nothing is known"


def test_a_journal_survives_what_writes_it(tmp_path: Path) -> None:
    made, journal = record(PASSED, FAILED), Journal(tmp_path / "journal.jsonl")
    assert journal.read() == Record()
    journal.subject(SUBJECT)
    journal.selected(made.selected.values())
    for case in made.cases.values():
        journal.begin(case.check, case.name)
        journal.case(case)
    journal.begin("toy.one", "toy.one[2]")
    assert journal.read() == replace(made, begun=("toy.one", "toy.one[2]"), finished=False)
    journal.finish()
    assert journal.read().finished
