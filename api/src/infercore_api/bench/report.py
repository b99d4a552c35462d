"""Reports: tables for people, one JSON document for machines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infercore.errors import ConfigError
from infercore_api.bench.figures import Figure


def show(console: Console, figures: Sequence[Figure]) -> None:
    """A table per `Figure.table`; each cell is the median, and min–max over rounds."""
    for name in dict.fromkeys(figure.table for figure in figures):
        console.print(_table(name, [figure for figure in figures if figure.table == name]))


def _table(name: str, figures: Sequence[Figure]) -> Table:
    columns = dict.fromkeys((figure.column, figure.unit) for figure in figures)
    cells = {(figure.row, figure.column): _cell(figure) for figure in figures}
    table = Table(title=name, title_justify="left")
    table.add_column("")
    for column, unit in columns:
        table.add_column(f"{column}\n{unit}", justify="right")
    for row in dict.fromkeys(figure.row for figure in figures):
        table.add_row(row, *(cells.get((row, column), "–") for column, _ in columns))
    return table


def _cell(figure: Figure) -> str:
    middle = number(figure.median)
    if len(figure.rounds) == 1:
        return middle
    return f"{middle}\n{number(min(figure.rounds))}–{number(max(figure.rounds))}"


def number(value: float) -> str:
    """Three digits that count: 1234, 123, 12.3, 1.23."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def write_json(
    path: Path,
    machine: Mapping[str, Any],
    options: Mapping[str, Any],
    model: Mapping[str, Any],
    figures: Sequence[Figure],
    failures: Sequence[str],
) -> None:
    """Everything that was shown, and what it depends on. Raises ConfigError if it cannot."""
    document = {
        "machine": machine,
        "options": options,
        "model": model,
        "figures": [figure.as_json() for figure in figures],
        "failures": list(failures),
    }
    try:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json {path}: {error.strerror}; name a file that can be written"
        ) from error
