"""What checks there are: every test below `profiles/` that bears a declaration."""

import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from infercore.errors import ConfigError
from infercore_conformance import profiles as home
from infercore_conformance.checks import Check, check_of

FOLDER = Path(home.__file__).parent


@dataclass(frozen=True, slots=True)
class Entry:
    """A check, where it stands ("infercore_conformance.profiles.executor.test_probe:42"), why."""

    check: Check
    place: str
    reason: str


def profile_names() -> dict[str, str]:
    """{name: what it is about}, of the profiles that this suite has."""
    names = sorted(info.name for info in pkgutil.iter_modules(home.__path__) if info.ispkg)
    return {name: _first_line(import_module(f"{home.__name__}.{name}")) for name in names}


def entries() -> Sequence[Entry]:
    """Every check of the suite, by profile and place. Imports all profiles, and no torch."""
    return [entry for name in profile_names() for module in _modules(name) for entry in _in(module)]


def require_profiles(wanted: Sequence[str]) -> None:
    """Raises ConfigError for a name that is no profile."""
    there = profile_names()
    for name in wanted:
        if name not in there:
            raise ConfigError(f"there is no profile {name!r}; there are: {', '.join(there)}")


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").partition("\n")[0]


def _modules(profile: str) -> Iterator[ModuleType]:
    package = import_module(f"{home.__name__}.{profile}")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("test_"):
            yield import_module(f"{package.__name__}.{info.name}")


def _in(module: ModuleType) -> Iterator[Entry]:
    for name, function in vars(module).items():
        declared = check_of(getattr(function, "pytestmark", ()))
        if declared is not None and name.startswith("test_"):
            line = inspect.getsourcelines(function)[1]
            yield Entry(declared, f"{module.__name__}:{line}", inspect.getdoc(function) or "")
