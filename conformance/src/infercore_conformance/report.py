"""The report: one JSON that says what was checked, on what, with what result and how to repeat it.

`report.schema.json`, beside this file, is its published form. A field is only ever added.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from infercore.errors import ConfigError
from infercore_conformance import __version__
from infercore_conformance.checks import Level
from infercore_conformance.expected import Expected
from infercore_conformance.outcomes import Case, Figure, Outcome, Record
from infercore_conformance.required import answered
from infercore_conformance.verdicts import Verdict, judge

SCHEMA_VERSION = 1
MESSAGE = 4000  # characters kept of a failure
Report: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """How the run was made. `complete` is False where profiles or checks were picked."""

    command: str
    started: datetime
    seconds: float
    quick: bool
    complete: bool
    processes: int


def make_report(
    record: Record, run: Run, expected: Sequence[Expected], today: date | None = None
) -> Report:
    """The report of a run's record."""
    verdicts = judge(record, expected, today or datetime.now(UTC).date())
    names = sorted({verdict.check.profile for verdict in verdicts})
    return {
        "schema": SCHEMA_VERSION,
        "suite": __version__,
        **record.subject,
        "run": {**asdict(run), "started": run.started.isoformat(timespec="seconds")},
        "conformant": bool(verdicts) and not any(v.counts_against for v in verdicts),
        "requirements": answered(record.subject["contract"], [v.check.id for v in verdicts]),
        "profiles": {
            name: _profile(v for v in verdicts if v.check.profile == name) for name in names
        },
        "checks": [_check(verdict) for verdict in verdicts],
    }


def schema() -> Mapping[str, Any]:
    """The JSON Schema (draft 2020-12) of a report."""
    text = (
        resources.files("infercore_conformance").joinpath("report.schema.json").read_text("utf-8")
    )
    loaded: Mapping[str, Any] = json.loads(text)
    return loaded


def write_report(report: Report, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_report(file: Path) -> Report:
    """Raises ConfigError for a file that is no report of a version that is known here."""
    try:
        report: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    version = report.get("schema") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{file} is no conformance report of schema {SCHEMA_VERSION} (it says {version!r}); "
            "make one with infercore conformance run --report FILE"
        )
    found: Report = report
    return found


def _profile(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    of_profile = list(verdicts)
    counts = {
        level.value: dict(Counter(v.status.value for v in of_profile if v.check.level is level))
        for level in Level
    }
    return {
        "conformant": not any(verdict.counts_against for verdict in of_profile),
        "seconds": round(sum(case.seconds for v in of_profile for case in v.cases), 3),
        **counts,
    }


def _check(verdict: Verdict) -> dict[str, Any]:
    check = verdict.check
    return {
        "id": check.id,
        "profile": check.profile,
        "level": check.level.value,
        "summary": check.summary,
        "needs": check.needs,
        "support": check.support,
        "detail": check.detail,
        "status": verdict.status.value,
        "cases": len(verdict.cases),
        "seconds": round(sum(case.seconds for case in verdict.cases), 3),
        "failures": [_failure(c) for c in verdict.cases if c.outcome is not Outcome.PASSED],
        "numerics": _numerics(verdict.cases),
        "expected": [
            {**asdict(entry), "expires": entry.expires.isoformat()} for entry in verdict.expected
        ],
    }


def _failure(case: Case) -> dict[str, str]:
    return {"case": case.name, "outcome": case.outcome.value, "message": case.message[-MESSAGE:]}


def _numerics(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Per figure: its worst value over the cases, where that was, and the bound there."""
    by_name: dict[str, list[tuple[Case, Figure]]] = {}
    for case in cases:
        for figure in case.figures:
            by_name.setdefault(figure.name, []).append((case, figure))
    return [_worst(name, found) for name, found in by_name.items()]


def _worst(name: str, found: Sequence[tuple[Case, Figure]]) -> dict[str, Any]:
    """The nearest to its bound, or beyond it; without bounds, the largest. NaN is the worst."""

    def badness(item: tuple[Case, Figure]) -> tuple[bool, float]:
        figure = item[1]
        share = figure.value / figure.bound if figure.bound else figure.value
        return math.isnan(share), share

    case, figure = max(found, key=badness)
    value = figure.value if math.isfinite(figure.value) else None  # JSON has no NaN, no infinity
    return {
        "name": name,
        "value": value,
        "bound": figure.bound,
        "case": case.name,
        "of": len(found),
    }
