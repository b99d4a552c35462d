"""A report as JUnit XML, for a CI server: one test case per check, with the report's verdict.

pytest's own file is lost when a backend crashes the process; this one is made from the report.
"""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from infercore_conformance.report import Report
from infercore_conformance.verdicts import Status

PASSED = (Status.PASSED, Status.UNDECLARED_WORKS)
FAILED = (Status.FAILED, Status.UNEXPECTED_PASS, Status.EXPIRED)


def as_junit(report: Report) -> str:
    """One suite per profile. A check that is not scored is skipped, with its status as reason."""
    root = ET.Element("testsuites", name="infercore conformance")
    for name, profile in report["profiles"].items():
        suite = ET.SubElement(root, "testsuite", name=name, time=str(profile["seconds"]))
        suite.set("timestamp", report["run"]["started"])
        cases = [_case(suite, check) for check in report["checks"] if check["profile"] == name]
        suite.set("tests", str(len(cases)))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            suite.set(plural, str(sum(case.find(kind) is not None for case in cases)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ET.Element, check: Mapping[str, Any]) -> ET.Element:
    case = ET.SubElement(
        suite, "testcase", classname=check["profile"], name=check["id"], time=str(check["seconds"])
    )
    kind = _kind(check)
    if kind is not None:
        found = ET.SubElement(case, kind, message=check["status"])
        found.text = "\n".join(_printable(failure["message"]) for failure in check["failures"])
    return case


def _kind(check: Mapping[str, Any]) -> str | None:
    if check["status"] in PASSED:
        return None
    if check["level"] == "provisional":
        return "skipped"
    if check["status"] in FAILED:
        return "failure"
    return "error" if check["status"] == Status.ERROR else "skipped"


def _printable(text: str) -> str:
    """XML has no place for control characters, and a backend's messages may hold colours."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
