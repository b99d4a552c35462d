"""A report as a Markdown table, for a page or a pull request."""

from collections.abc import Iterator

from infercore_conformance.report import Report


def as_markdown(report: Report) -> str:
    """Who, on what, a table of all checks, the figures, and the command that repeats it."""
    who, run = report["implementation"], report["run"]
    lines = [
        f"# {who['distribution']} {who['version']}: backend `{who['backend']}`",
        "",
        _verdict(report),
        *_requirements(report),
        "",
        f"    {run['command']}",
        "",
        "| check | level | needs | status | cases | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for check in report["checks"]:
        cells = (check["id"], check["level"], check["needs"], check["status"], check["cases"])
        lines.append(f"| {' | '.join(map(_cell, cells))} | {check['seconds']:.2f} |")
    lines += _numerics(report)
    return "\n".join(lines) + "\n"


def _verdict(report: Report) -> str:
    word = "Conformant" if report["conformant"] else "Not conformant"
    devices = ", ".join(report["hardware"]["devices"])
    return f"{word} with contract {report['contract']}, suite {report['suite']}, on {devices}."


def _requirements(report: Report) -> Iterator[str]:
    """Which set it answers; reports of earlier suites do not say."""
    required = report.get("requirements")
    if required is not None:
        total, contract = required["checks"], required["contract"]
        run = total - len(required["missing"])
        yield f"Of the {total} checks that contract {contract} asks for, it ran {run}."


def _numerics(report: Report) -> Iterator[str]:
    rows = [(check["id"], figure) for check in report["checks"] for figure in check["numerics"]]
    if rows:
        yield from ("", "| check | figure | worst | bound |", "|---|---|---|---|")
    for name, figure in rows:
        value, bound = figure["value"], figure["bound"]
        shown = "not a number" if value is None else f"{value:.3g}"
        allowed = "" if bound is None else f"{bound:.3g}"
        yield f"| {name} | {_cell(figure['name'])} | {shown} | {allowed} |"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")
