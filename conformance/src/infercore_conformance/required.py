"""Requirement sets: which checks a version of the contract asks for, recorded and then kept.

`python -m infercore_conformance.required` records the suite's checks for the present API_VERSION.
A set stands still from the release of its version on: a new check waits for the next minor one.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from infercore.executor import API_VERSION
from infercore_conformance import catalogue

FOLDER = Path(__file__).with_name("requirements")


def present() -> Mapping[str, str]:
    """{check: level} of this suite."""
    return {entry.check.id: str(entry.check.level) for entry in catalogue.entries()}


def recorded(contract: str) -> Mapping[str, str] | None:
    """{check: level} of a contract's version, "1.0"; None if nothing was recorded for it."""
    file = _file(contract)
    if not file.exists():
        return None
    checks: Mapping[str, str] = json.loads(file.read_text("utf-8"))["checks"]
    return checks


def answered(contract: str, checks: Collection[str]) -> Mapping[str, Any] | None:
    """Which set a run of `checks` answers, and which of its checks it leaves open, for a report."""
    required = recorded(contract)
    if required is None:
        return None
    missing = sorted(required.keys() - set(checks))
    return {"contract": contract, "checks": len(required), "missing": missing}


def _file(contract: str) -> Path:
    return FOLDER / f"contract_{contract.replace('.', '_')}.json"


def record() -> Path:
    """Write the present set. Returns its file."""
    contract = ".".join(map(str, API_VERSION))
    checks = dict(sorted(present().items()))
    text = json.dumps({"contract": contract, "checks": checks}, indent=1)
    _file(contract).write_text(text + "\n", encoding="utf-8")
    return _file(contract)


if __name__ == "__main__":
    print(f"recorded in {record()}")
