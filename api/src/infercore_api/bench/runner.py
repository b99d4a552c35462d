"""Runs what was asked for, shows it, and says whether every request went well."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from infercore.launch import quiet
from infercore_api.bench.figures import Figure
from infercore_api.bench.machine import machine_facts
from infercore_api.bench.offline import Offline, Tick
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.report import show, write_json
from infercore_api.bench.serve import measure_server

_SHOWN_FAILURES = 3


@dataclass(slots=True)
class _Findings:
    figures: list[Figure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: Mapping[str, Any] = field(default_factory=dict)


def run(options: BenchOptions, json_file: Path | None) -> int:
    """Returns the exit code: 1 if a request failed. Raises ConfigError if nothing can run."""
    machine = machine_facts()
    console = Console(highlight=False)
    console.print(_headline(options, machine), soft_wrap=True)
    findings = _measure(options)
    show(console, findings.figures)
    for note in findings.notes:
        console.print(note, soft_wrap=True, markup=False)
    _show_failures(console, findings.failures)
    if json_file is not None:
        facts = (machine, asdict(options), findings.model)
        write_json(json_file, *facts, findings.figures, findings.failures)
    return 1 if findings.failures else 0


def _measure(options: BenchOptions) -> _Findings:
    findings = _Findings()
    progress_console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = progress_console.is_terminal
    with Progress(*columns, console=progress_console, transient=True, disable=not terminal) as bar:
        task = bar.add_task("starting", total=_ticks(options))

        def tick(what: str) -> None:
            bar.update(task, advance=1, description=what)

        if options.offline or options.mode == "latency":
            _measure_engine(options, findings, tick)
        if options.serve:
            bar.update(task, description="starting the server")
            served = measure_server(options, quiet, tick)
            findings.model = findings.model or {"model_id": served.model}
            findings.figures += served.figures
            findings.failures += served.failures
            findings.notes += served.notes
    return findings


def _measure_engine(options: BenchOptions, findings: _Findings, tick: Tick) -> None:
    offline = Offline(options)
    try:
        findings.model = asdict(offline.launched.info)
        if options.mode == "latency":
            findings.figures += offline.latency(tick)
        else:
            findings.figures += offline.throughput(tick)
            findings.figures += offline.against_bare_loop(tick)
    finally:
        offline.close()


def _ticks(options: BenchOptions) -> int:
    parts = (len(options.batch_sizes) + 1) * options.offline
    parts += len(options.concurrency) * options.serve
    return max(1, parts) * options.rounds


def _headline(options: BenchOptions, machine: Mapping[str, Any]) -> str:
    what = options.url or f"{options.model_id} on {options.backend}, {options.dtype}"
    return (
        f"{what}; prompts of {options.prompt_len} tokens, {options.output_len} generated; "
        f"{machine['cpu']}, {machine['threads']} threads, load average "
        f"{machine['load_average']:.1f}; median of {options.rounds} rounds, and min–max"
    )


def _show_failures(console: Console, failures: list[str]) -> None:
    if not failures:
        return
    console.print(f"{len(failures)} requests FAILED:", style="bold red")
    for error, count in Counter(failures).most_common(_SHOWN_FAILURES):
        console.print(f"  {count} × {error}", soft_wrap=True, markup=False)
