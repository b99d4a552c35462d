"""Runs the suite in a process of its own, so that a backend that crashes or hangs is a failed case
and not the end of the report.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infercore.errors import ConfigError
from infercore_conformance import catalogue
from infercore_conformance.expected import read_expected
from infercore_conformance.outcomes import Case, Journal, Outcome, Record
from infercore_conformance.report import Report, Run, make_report
from infercore_conformance.verdicts import unknown_entries

SETTINGS = Path(__file__).with_name("pytest.ini")
MOST_CRASHES = 20  # then the run is given up
FOREIGN = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")  # another project's wishes


@dataclass(frozen=True, slots=True)
class Options:
    """What `infercore conformance run` was asked for.

    own: files or folders with the vendor's own checks, run beside the suite's.
    arguments: passed to pytest as they are.
    """

    backend: str
    profiles: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    quick: bool = False
    expected: Path | None = None
    own: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["infercore", "conformance", "run", "--backend", self.backend]
        for option, values in (
            ("--profile", self.profiles),
            ("--check", self.checks),
            ("--own-checks", self.own),
            ("--expected-failures", () if self.expected is None else (self.expected,)),
        ):
            words += [word for value in values for word in (option, str(value))]
        words += ["--quick"] * self.quick
        words += ["--", *self.arguments] if self.arguments else []
        return shlex.join(words)


def run(options: Options) -> Report:
    """Run and report. Raises ConfigError where nothing could be run."""
    if not options.own:  # own checks may have a profile of their own
        catalogue.require_profiles(options.profiles)
    expected = read_expected(options.expected)
    started, clock = datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="infercore-conformance-") as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        processes = _until_finished(options, journal, Path(folder) / "journal.jsonl")
        record = journal.read()
    if not record.selected:
        raise ConfigError("no check was selected; infercore conformance list shows them all")
    unknown = unknown_entries(record, expected)
    if unknown and not (options.profiles or options.checks or options.quick):
        raise ConfigError(
            f"{options.expected} names {', '.join(unknown)}, and there is no such check; "
            "infercore conformance list shows them all"
        )
    made = Run(
        options.command(),
        started,
        round(time.monotonic() - clock, 3),
        options.quick,
        complete=not (options.profiles or options.checks or options.arguments),
        processes=processes,
    )
    return make_report(record, made, expected)


def _until_finished(options: Options, journal: Journal, file: Path) -> int:
    """Start pytest, again after a crash behind the case that crashed; returns how often."""
    for process in range(1, MOST_CRASHES + 2):
        ended = _pytest(options, file)
        record = journal.read()
        if record.finished:
            return process
        _require_a_case(record, ended)
        check, case = record.begun or ("", "")
        journal.case(Case(check, case, Outcome.FAILED, 0.0, _cause(ended)))
    raise ConfigError(
        f"backend {options.backend} crashed {MOST_CRASHES + 1} times; run single checks with "
        "--check ID to find out why"
    )


def _pytest(options: Options, journal: Path) -> int:
    environment = {k: v for k, v in os.environ.items() if k not in FOREIGN}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "infercore_conformance", *_arguments(options, journal)]
    return subprocess.run(command, env=environment, check=False).returncode


def _arguments(options: Options, journal: Path) -> Sequence[str]:
    arguments = ["-c", str(SETTINGS), "-p", "infercore_conformance.plugin"]
    arguments += ["--conformance-backend", options.backend, "--conformance-journal", str(journal)]
    for check in options.checks:
        arguments += ["--conformance-check", check]
    if options.quick:
        arguments.append("--conformance-quick")
    if options.expected is not None:
        arguments += ["--conformance-expected", str(options.expected.resolve())]
    for profile in options.profiles:
        arguments += ["--conformance-profile", profile]
    return [*arguments, *options.arguments, *_paths(options), *map(str, options.own)]


def _paths(options: Options) -> Sequence[str]:
    """Where the wanted profiles' checks are; a profile of own checks is in none of the suite's."""
    if not options.profiles:
        return [str(catalogue.FOLDER)]
    there = catalogue.profile_names()
    return [str(catalogue.FOLDER / name) for name in options.profiles if name in there]


def _require_a_case(record: Record, ended: int) -> None:
    """Raises ConfigError where pytest ended before, or between, the cases."""
    if record.begun is None:
        raise ConfigError(
            f"the run has no result: pytest ended with {ended}, and what it printed says why"
        )


def _cause(ended: int) -> str:
    if ended < 0:
        return f"the process was ended by {signal.Signals(-ended).name} while this case ran"
    return f"the process ended with {ended} while this case ran: it hung, or left by itself"
