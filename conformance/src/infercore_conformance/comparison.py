"""What changed from one report to another: verdicts, figures, checks that came and went."""

from collections.abc import Iterator, Mapping
from typing import Any

from infercore_conformance.report import Report
from infercore_conformance.verdicts import BAD

NOTABLE = 1.5  # a figure is told of if it changed by this factor


def compared(first: Report, second: Report) -> tuple[str, bool]:
    """(the changes as text, whether a check is bad now that was not)."""
    before, after = _by_id(first), _by_id(second)
    both = [name for name in after if name in before]
    changed = [name for name in both if before[name]["status"] != after[name]["status"]]
    worse = any(after[n]["status"] in BAD and before[n]["status"] not in BAD for n in changed)
    lines = [f"from {_title(first)}", f"to   {_title(second)}"]
    lines += [f"  {n}: {before[n]['status']} → {after[n]['status']}" for n in changed]
    lines += [f"  {name}: new, {after[name]['status']}" for name in after if name not in before]
    lines += [f"  {name}: no longer run" for name in before if name not in after]
    lines += [line for name in both for line in _figures(before[name], after[name])]
    if len(lines) == 2:
        lines.append("  nothing changed")
    return "\n".join(lines), worse


def _by_id(report: Report) -> dict[str, Mapping[str, Any]]:
    return {check["id"]: check for check in report["checks"]}


def _title(report: Report) -> str:
    who = report["implementation"]
    return f"{who['distribution']} {who['version']}, {report['run']['started']}"


def _figures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old = {figure["name"]: figure["value"] for figure in before["numerics"]}
    for figure in after["numerics"]:
        name, new = figure["name"], figure["value"]
        was = old.get(name, new)
        if _notable(was, new):
            yield f"  {after['id']}: {name} {_shown(was)} → {_shown(new)}"


def _notable(was: float | None, now: float | None) -> bool:
    if was is None or now is None:
        return was is not now
    low, high = sorted((abs(was), abs(now)))
    return high > NOTABLE * low


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
