"""A report in a few lines, for the end of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from infercore_conformance.checks import Level
from infercore_conformance.report import Report
from infercore_conformance.verdicts import BAD, Status

FIRST_LINES = 3  # of a failure's message; the report holds more
TOLD = (Status.UNDECLARED_WORKS, Status.UNDECLARED_FAILS, Status.EXPECTED_FAILURE)


def summary(report: Report) -> str:
    """One line per profile and level, what failed and why, what else is to be told, the verdict."""
    who = report["implementation"]
    lines = ["", f"{who['distribution']} {who['version']}, backend {who['backend']}"]
    for name, profile in report["profiles"].items():
        lines += [
            f"  {name:<12} {level:<12} {_counts(profile[level])}"
            for level in Level
            if profile[level]
        ]
    lines += _failures(report)
    lines += _told(report)
    lines.append(_verdict(report))
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    order = [status for status in Status if status in counts]
    return ", ".join(f"{counts[status]} {status}" for status in order)


def _failures(report: Report) -> Iterator[str]:
    for check in report["checks"]:
        if check["status"] in BAD:
            yield f"\n{check['status']}: {check['id']} ({check['level']})"
            yield f"  {check['summary']}"
            for failure in check["failures"][:1]:
                yield f"  {failure['case']}:"
                yield from (f"    {line}" for line in _gist(failure["message"]))
            for entry in check["expected"]:
                yield f"  listed until {entry['expires']}: {entry['reason']} ({entry['link']})"


def _gist(message: str) -> list[str]:
    """The lines that pytest marks as the error, or else the last ones."""
    lines = [line for line in message.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return marked[:FIRST_LINES] or lines[-FIRST_LINES:]


def _told(report: Report) -> Iterator[str]:
    for status in TOLD:
        found = [check for check in report["checks"] if check["status"] == status]
        if found:
            yield f"\n{status}:"
            yield from (f"  {check['id']}{_about(check)}" for check in found)


def _about(check: Mapping[str, Any]) -> str:
    reasons = "; ".join(entry["reason"] for entry in check["expected"])
    return f" ({reasons or check['needs']})"


def _verdict(report: Report) -> str:
    run = report["run"]
    scope = " (quick)" if run["quick"] else ""
    scope += "" if run["complete"] else " (a part of the checks)"
    word = "conformant" if report["conformant"] else "NOT conformant"
    return (
        f"\n{word}{scope}, contract {report['contract']}, {run['seconds']:.0f} s: {run['command']}"
    )
