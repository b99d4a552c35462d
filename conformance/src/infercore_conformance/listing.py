"""The checks, as `infercore conformance list` and `explain` show them."""

from collections.abc import Sequence
from difflib import get_close_matches

from infercore.errors import ConfigError
from infercore_conformance import catalogue


def listing(profiles: Sequence[str] = ()) -> str:
    """Every check of the named profiles, or of all. Raises ConfigError for an unknown one."""
    catalogue.require_profiles(profiles)
    entries = catalogue.entries()
    lines: list[str] = []
    for name, about in catalogue.profile_names().items():
        if profiles and name not in profiles:
            continue
        lines += ["", f"{name}: {about}"]
        for entry in entries:
            check = entry.check
            if check.profile == name:
                needs = f", needs {check.needs}" if check.needs is not None else ""
                lines.append(f"  {check.id} ({check.level}{needs})")
                lines.append(f"      {check.summary}")
    return "\n".join(lines[1:])


def explanation(name: str) -> str:
    """One check in full. Raises ConfigError, with the nearest ids, for one that is not there."""
    found = {entry.check.id: entry for entry in catalogue.entries()}
    if name not in found:
        near = ", ".join(get_close_matches(name, found, n=3, cutoff=0.4))
        hint = f"did you mean {near}?" if near else "infercore conformance list shows them all"
        raise ConfigError(f"there is no check {name!r}; {hint}")
    entry = found[name]
    check = entry.check
    needs = "nothing: every backend passes it" if check.needs is None else str(check.needs)
    lines = [
        check.id,
        f"  {check.summary}",
        "",
        f"  level      {check.level}",
        f"  needs      {needs}",
        f"  time       at most {check.timeout:g} s a case",
        f"  source     {entry.place}",
        f"  run alone  infercore conformance run --backend NAME --check {check.id}",
    ]
    if entry.reason:
        lines += ["", *(f"  {line}".rstrip() for line in entry.reason.splitlines())]
    return "\n".join(lines)
