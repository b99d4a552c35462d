"""The named check of each defect, in one process beside this one."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from planted.defect import Defect
from planted.environment import environment

LONGEST = 600.0  # seconds for all of them


@dataclass(frozen=True)
class Verdict:
    """What a defect's own check came to.

    caught: it failed by the defect's cause. otherwise: how else it failed, or "" if it passed.
    control: how it failed on the unbroken backend, which it must not.
    """

    defect: Defect
    caught: bool
    seconds: float
    message: str
    otherwise: str
    control: str

    @property
    def good(self) -> bool:
        return self.caught and not self.control

    def __str__(self) -> str:
        if self.control:
            return f"{self.defect.caught_by} fails on the unbroken backend: {self.control}"
        if self.caught:
            return self.message
        return f"{self.defect.caught_by} {self.otherwise or 'passes all the same'}"


def verdicts(defects: Iterable[Defect]) -> list[Verdict]:
    """Run them all. Raises CalledProcessError, with what was printed, if that process breaks."""
    wanted = list(defects)
    with environment() as variables, TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "planted.session", str(file)]
        command += [defect.id for defect in wanted]
        subprocess.run(command, env=variables, check=True, timeout=LONGEST)
        found = json.loads(file.read_text())
    return [_verdict(defect, found[defect.caught_by]) for defect in wanted]


def _verdict(defect: Defect, by_backend: dict[str, dict[str, object]]) -> Verdict:
    own, control = by_backend[f"{defect.base}+{defect.id}"], by_backend.get(defect.base, {})
    return Verdict(
        defect,
        bool(own["caught"]),
        float(str(own["seconds"])),
        str(own["message"]),
        _joined(own.get("failures")),
        _joined(control.get("failures")),
    )


def _joined(failures: object) -> str:
    return "; ".join(failures) if isinstance(failures, list) else ""
