"""Prints which checks catch which defect, how long it took, and the mutation score.

    python -m planted [--named] [--jobs N] [ID ...]

Without --named the whole quick suite runs over every defect, as a vendor would run it. Ends with 1
unless each is caught by the check that it names.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from planted.catalogue import DEFECTS
from planted.defect import Defect
from planted.environment import environment
from planted.named import verdicts

INFERCORE = Path(sys.executable).with_name("infercore")
BAD = ("failed", "error")


@dataclass(frozen=True)
class Line:
    """A row of the matrix. also: other checks that fail."""

    defect: Defect
    caught: bool
    seconds: float
    also: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        word = "caught" if self.caught else "MISSED"
        name = f"{self.defect.base}+{self.defect.id}"
        also = f"  and by {', '.join(self.also)}" if self.also else ""
        return (
            f"{word}  {self.seconds:6.1f} s  {name}  by {self.defect.caught_by}{also}{self.reason}"
        )


def by_name(defects: Sequence[Defect]) -> list[Line]:
    return [
        Line(v.defect, v.good, v.seconds, reason="" if v.good else f"\n        {v}")
        for v in verdicts(defects)
    ]


def whole(variables: Mapping[str, str], defect: Defect) -> Line:
    """The quick suite over one defect; tells at once, since all of them take hours."""
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [INFERCORE, "conformance", "run", "--backend", f"{defect.base}+{defect.id}"]
        quick = [] if defect.thorough else ["--quick"]
        ended = subprocess.run(
            [*map(str, command), *quick, "--report", str(report), "--", "-q", "--tb=no"],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            raise RuntimeError(f"{defect.id}: {ended.stdout}{ended.stderr}")
        checks = json.loads(report.read_text())["checks"]
    failing = [check["id"] for check in checks if check["status"] in BAD]
    also = tuple(name for name in failing if name != defect.caught_by)
    line = Line(defect, defect.caught_by in failing, time.monotonic() - started, also)
    print(line, flush=True)
    return line


def main() -> int:
    parser = argparse.ArgumentParser(prog="planted", description=__doc__)
    parser.add_argument("--named", action="store_true", help="run each defect's own check only")
    parser.add_argument("--jobs", type=int, default=1, help="suites at once (default 1)")
    parser.add_argument("ids", nargs="*", metavar="ID", help="these defects only")
    given = parser.parse_args()
    unknown = sorted(set(given.ids) - DEFECTS.keys())
    if unknown:
        parser.error(f"there is no defect {', '.join(unknown)}")
    defects = [DEFECTS[name] for name in given.ids or DEFECTS]
    if given.named:
        lines = by_name(defects)
        print(*lines, sep="\n")
    else:
        with environment() as variables, ThreadPoolExecutor(given.jobs) as pool:
            lines = list(pool.map(partial(whole, variables), defects))
    caught = sum(line.caught for line in lines)
    seconds = sum(line.seconds for line in lines)
    print(
        f"\n{caught} of {len(lines)} defects are caught, mutation score "
        f"{100 * caught / len(lines):.1f} %, {seconds / len(lines):.2f} s each"
    )
    return int(caught < len(lines))


if __name__ == "__main__":
    sys.exit(main())
