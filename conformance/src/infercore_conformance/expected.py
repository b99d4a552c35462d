"""Failures that a vendor expects, in a TOML file of the vendor's own.

    [[expected]]
    check = "executor.late.mask"        # or one case of it: "executor.kv.copy[16]"
    reason = "masks are applied to the first row only"
    link = "https://tracker.example/acme/42"
    expires = 2027-03-31

An entry excuses a failure until its day; after that, and when what it excuses passes, it is a
failure itself. So the file shrinks.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from infercore.errors import ConfigError

KEYS = {"check": str, "reason": str, "link": str, "expires": date}


@dataclass(frozen=True, slots=True)
class Expected:
    """One entry. `check` is a check's id, or the name of one of its cases."""

    check: str
    reason: str
    link: str
    expires: date

    def covers(self, check: str, case: str) -> bool:
        return self.check in (check, case)

    def expired(self, today: date) -> bool:
        return today > self.expires


def read_expected(file: Path | None) -> Sequence[Expected]:
    """The entries of a file, none without one. Raises ConfigError, naming the entry at fault."""
    if file is None:
        return ()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    listed = table.pop("expected", [])
    if table or not isinstance(listed, list):
        raise ConfigError(f"{file}: it holds [[expected]] entries and nothing else")
    entries = [_entry(file, number, item) for number, item in enumerate(listed, 1)]
    names = [entry.check for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{file}: {name} is listed twice; keep one entry")
    return entries


def _entry(file: Path, number: int, item: Any) -> Expected:
    if not isinstance(item, dict) or set(item) != set(KEYS):
        raise ConfigError(f"{file}: entry {number} needs {', '.join(KEYS)}, and nothing else")
    for key, kind in KEYS.items():
        # a datetime is a date too, and compares with none
        if type(item[key]) is not kind or item[key] == "":
            raise ConfigError(f"{file}: entry {number}: {key} is {item[key]!r}, not {_what(kind)}")
    return Expected(**item)


def _what(kind: type) -> str:
    return "a date such as 2027-03-31" if kind is date else "a text that is not empty"
