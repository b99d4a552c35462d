"""A backend without a defect is green every time: what fails now and then tells nobody anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infercore_conformance import catalogue
from infercore_conformance.checks import Level

INFERCORE = Path(sys.executable).with_name("infercore")
TIMES = 20
PROFILES = ("executor", "engine")  # those with threads, clocks and processes in them
LONGEST = 600  # seconds of one run


@pytest.mark.slow
@pytest.mark.timeout(LONGEST)
@pytest.mark.parametrize("time", range(1, TIMES + 1))
def test_core_is_green_again(time: int, tmp_path: Path) -> None:
    """Every process orders its sets otherwise."""
    report = tmp_path / "report.json"
    command = [str(INFERCORE), "conformance", "run", "--backend", "cpu", "--quick"]
    for entry in catalogue.entries():
        if entry.check.profile in PROFILES and entry.check.level is Level.CORE:
            command += ["--check", entry.check.id]
    ended = subprocess.run(
        [*command, "--report", str(report)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(time)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    statuses = {check["status"] for check in json.loads(report.read_text())["checks"]}
    assert statuses == {"passed"}
