"""The matrix of reports: one page that shows backends beside each other, check by check."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from infercore_conformance.checks import Level
from infercore_conformance.report import Report
from infercore_conformance.verdicts import Status

MARKS = {
    Status.PASSED: "passed",
    Status.NOT_RUN: "–",
    Status.UNDECLARED_WORKS: "works, undeclared",
    Status.UNDECLARED_FAILS: "–",
}
LEGEND = (
    "A dash is what a backend does not declare, and is not held to. Core excuses nobody; Extended",
    "holds whoever declares the feature; Provisional is not scored.",
)


def as_matrix(reports: Sequence[Report]) -> str:
    """A Markdown page. reports: in the order of its columns."""
    lines = [
        "# Backends and the contract",
        "",
        "Made by `infercore conformance matrix` from reports of `infercore conformance run`.",
        *LEGEND,
        "",
        *_table("", [_backend(report) for report in reports], _facts(reports)),
    ]
    for profile, checks in groupby(_checks(reports), lambda check: check["profile"]):
        rows = (_row(check, reports) for check in checks)
        names = [_backend(report) for report in reports]
        lines += ["", f"## {profile}", "", *_table("check", ["level", *names], rows)]
    return "\n".join(lines) + "\n"


def shortened(report: Report) -> Report:
    """What the matrix shows of a report, and no more: valid against the schema as well."""
    kept = {**report, "environment": {**report["environment"], "platform": "", "variables": {}}}
    kept["checks"] = [
        {**check, "failures": [], "numerics": [], "expected": []} for check in report["checks"]
    ]
    return kept


def write_short(report: Report, file: Path) -> None:
    """A short report, its checks a line each, so that a change shows as what it is."""
    short = shortened(report)
    checks = ",\n".join(json.dumps(check, ensure_ascii=False) for check in short.pop("checks"))
    head = json.dumps(short, ensure_ascii=False, indent=1).removesuffix("\n}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{head},\n "checks": [\n{checks}\n ]\n}}\n', encoding="utf-8")


def _backend(report: Report) -> str:
    return f"`{report['implementation']['backend']}`"


def _facts(reports: Sequence[Report]) -> Iterator[Sequence[str]]:
    yield "conformant", *(_conformant(report) for report in reports)
    for name in ("distribution", "version"):
        yield name, *(report["implementation"][name] for report in reports)
    yield "contract", *(report["contract"] for report in reports)
    yield "suite", *(report["suite"] for report in reports)
    yield "devices", *(", ".join(report["hardware"]["devices"]) for report in reports)
    yield "dtypes", *(", ".join(report["capabilities"]["limits"]["dtypes"]) for report in reports)
    yield "run on", *(report["run"]["started"][:10] for report in reports)
    yield "seconds", *(f"{report['run']['seconds']:.0f}" for report in reports)
    for level in Level:
        yield f"{level} passed", *(_passed(report, level) for report in reports)


def _conformant(report: Report) -> str:
    run = report["run"]
    part = " (quick)" if run["quick"] else "" if run["complete"] else " (in part)"
    return ("yes" if report["conformant"] else "**no**") + part


def _passed(report: Report, level: Level) -> str:
    """Of those that were run."""
    counts = [profile[level] for profile in report["profiles"].values()]
    ran = sum(n for c in counts for status, n in c.items() if MARKS.get(Status(status)) != "–")
    return f"{sum(c.get(Status.PASSED, 0) for c in counts)} of {ran}"


def _checks(reports: Iterable[Report]) -> Sequence[Mapping[str, Any]]:
    """Every check of any of them, by profile."""
    known = {check["id"]: check for report in reports for check in report["checks"]}
    return sorted(known.values(), key=lambda check: check["profile"])


def _row(check: Mapping[str, Any], reports: Iterable[Report]) -> Sequence[str]:
    found = [_status(report, check["id"]) for report in reports]
    return f"`{check['id']}`", check["level"], *found


def _status(report: Report, check: str) -> str:
    statuses = [each["status"] for each in report["checks"] if each["id"] == check]
    if not statuses:
        return "not in this run"
    return MARKS.get(Status(statuses[0]), f"**{statuses[0]}**")


def _table(first: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {first} | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
