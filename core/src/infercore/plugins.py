"""Finds plugins by their metadata, imports the ones that are wanted, refuses what does not fit.

Every refusal is a PluginError that names the plugin, its distribution, its version and what to
run. A start is stopped only by a refused backend that was asked for, and by two plugins that claim
one name; any other plugin that cannot be used is logged and left out.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, distributions
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

import pluggy

from infercore import hookspecs
from infercore.backend import Backend
from infercore.errors import PluginError
from infercore.executor import API_VERSION, Executor, Probe
from infercore.model_spec import ModelFamily
from infercore.quantization import QuantizationMethod

GROUP = "infercore.plugins"
ALLOW_LIST = "INFERCORE_PLUGINS"
HOOK_OF_KIND = {
    "backend": "register_backend",
    "quantization": "register_quantization",
    "models": "register_models",
    "routes": "register_routes",
    "commands": "register_commands",
}

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point and who brings it; nothing of it is imported yet."""

    entry: EntryPoint
    distribution: str
    version: str

    @property
    def kind(self) -> str:
        return self.entry.name.partition(".")[0]

    @property
    def name(self) -> str:
        """What the entry point is called after its kind: "cpu" of backend.cpu."""
        return self.entry.name.partition(".")[2]

    @property
    def remedy(self) -> str:
        return f"Install a release of it that fits, or remove it: pip uninstall {self.distribution}"

    def __str__(self) -> str:
        return f"plugin {self.entry.name} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """A plugin as `infercore plugins list` shows it.

    contract: the API_VERSION that it was written for, "" if it could not be read.
    available: it can be used here and now; if not, `reason` says why and what to do.
    """

    name: str
    distribution: str
    version: str
    contract: str
    available: bool
    reason: str = ""


def installed() -> Iterator[Candidate]:
    """The entry points of our group, from metadata alone; the first on sys.path wins a name."""
    seen: set[str] = set()
    for dist in distributions():
        try:
            metadata = dist.metadata
            if "Name" not in metadata:
                continue
            name, version = metadata["Name"], metadata["Version"]
            entries = dist.entry_points.select(group=GROUP)
        except Exception as error:  # noqa: BLE001 - somebody else's files, in any state
            _log.warning("a distribution in %s cannot be read: %s", dist.locate_file(""), error)
            continue
        key = name.lower().replace("_", "-").replace(".", "-")
        if key not in seen:
            yield from (Candidate(entry, name, version) for entry in entries)
        seen.add(key)


class PluginManager:
    """The plugins of this installation. Made by whoever needs one; it holds what it imported.

    candidates: what there is to choose from; None = what is installed. The environment variable
        INFERCORE_PLUGINS, names with commas between, hides all others: for finding a culprit.
        Unset or empty, it hides none.
    """

    def __init__(self, candidates: Iterable[Candidate] | None = None) -> None:
        everything = installed() if candidates is None else candidates
        self._candidates = _allowed(everything, os.environ.get(ALLOW_LIST))
        self._loaded: dict[str, pluggy.PluginManager] = {}

    def backend(self, name: str) -> type[Backend] | type[Executor]:
        """The class behind `--backend NAME`; its hardware is not looked for. Raises PluginError."""
        backends = self._of_kind("backend")
        for candidate in backends:
            if candidate.name == name:
                self._require_only_owner(candidate)
                return self._backend_class(candidate)
        names = ", ".join(sorted({c.name for c in backends})) or "none"
        raise PluginError(
            f"no backend {name!r} is installed; there are: {names}. Choose one of them, or install "
            f"its distribution beside this core: pip install --no-index --find-links WHEELS "
            f"'core[{name}]'"
        )

    def quantization_methods(self) -> Sequence[type[QuantizationMethod]]:
        """All formats that can be read. Raises PluginError for a name claimed twice."""
        owned = self._collect("quantization", _is_method)
        _require_unique("quantization method", ((m.name, owner) for m, owner in owned))
        return [method for method, _ in owned]

    def model_families(self) -> Sequence[ModelFamily]:
        """All families. Raises PluginError for an architecture claimed twice."""
        owned = self._collect("models", _is_family)
        names = ((name, owner) for family, owner in owned for name in family.architectures)
        _require_unique("architecture", names)
        return [family for family, _ in owned]

    def register_routes(self, app: Any, state: Any) -> None:
        """Let every routes plugin add its own to `app`."""
        for candidate in self._distinct("routes"):
            with _left_out_if_refused():
                self._call(candidate, app=app, state=state)

    def register_commands(self, cli: Any) -> None:
        """Let every commands plugin add its own to `cli`."""
        for candidate in self._distinct("commands"):
            with _left_out_if_refused():
                self._call(candidate, cli=cli)

    def list(self) -> Sequence[PluginStatus]:
        """Every plugin, usable or not; imports them all and probes the backends."""
        return [self._status(candidate) for candidate in self._candidates]

    def _status(self, candidate: Candidate) -> PluginStatus:
        contract, probe = "", Probe(available=True)
        try:
            _require_known_kind(candidate)
            self._require_only_owner(candidate)
            contract = ".".join(map(str, _contract(_module(candidate), candidate)))
            probe = self._try(candidate)
        except PluginError as error:
            probe = Probe(available=False, reason=str(error))
        return PluginStatus(
            candidate.entry.name,
            candidate.distribution,
            candidate.version,
            contract,
            probe.available,
            probe.reason,
        )

    def _try(self, candidate: Candidate) -> Probe:
        """Use a plugin as far as that is possible without a server."""
        if candidate.kind == "backend":
            backend = self._backend_class(candidate)
            with _blamed_on(candidate, "its probe failed"):
                return _probe(backend)
        if candidate.kind == "models":
            self._items(candidate, _is_family)
        elif candidate.kind == "quantization":
            self._items(candidate, _is_method)
        else:
            self._load(candidate)
        return Probe(available=True)

    def _of_kind(self, kind: str) -> Sequence[Candidate]:
        return [c for c in self._candidates if c.kind == kind]

    def _distinct(self, kind: str) -> Sequence[Candidate]:
        candidates = self._of_kind(kind)
        for candidate in candidates:
            self._require_only_owner(candidate)
        return candidates

    def _require_only_owner(self, candidate: Candidate) -> None:
        owners = [c for c in self._candidates if c.entry.name == candidate.entry.name]
        if len(owners) > 1:
            raise PluginError(
                f"{' and '.join(map(str, owners))} claim one name, so neither is used. "
                f"Remove one of them: pip uninstall {owners[-1].distribution}"
            )

    def _load(self, candidate: Candidate) -> pluggy.PluginManager:
        """Import and validate. Each plugin has a manager of its own, so each error has an owner."""
        loaded = self._loaded.get(candidate.entry.name)
        if loaded is None:
            module = _module(candidate)
            _require_contract(_contract(module, candidate), candidate)
            loaded = self._loaded[candidate.entry.name] = _validated(module, candidate)
        return loaded

    def _call(self, candidate: Candidate, **arguments: Any) -> Sequence[Any]:
        hook_name = HOOK_OF_KIND[candidate.kind]
        hook: Callable[..., Sequence[Any]] = getattr(self._load(candidate).hook, hook_name)
        with _blamed_on(candidate, f"its {hook_name} failed"):
            return hook(**arguments)

    def _backend_class(self, candidate: Candidate) -> type[Backend] | type[Executor]:
        result = next(iter(self._call(candidate)), None)
        if not (isinstance(result, type) and issubclass(result, (Backend, Executor))):
            raise PluginError(
                f"{candidate} registers {result!r}, which is no subclass of Backend or Executor. "
                f"{candidate.remedy}"
            )
        _require_complete(result, candidate)
        return result

    def _items(
        self, candidate: Candidate, accepts: Callable[[object], TypeGuard[_T]]
    ) -> Sequence[_T]:
        items: list[_T] = []
        for result in self._call(candidate):
            for item in result if isinstance(result, Sequence) else [result]:
                if not accepts(item):
                    raise PluginError(
                        f"{candidate} registers {item!r}, which {HOOK_OF_KIND[candidate.kind]} "
                        f"does not take. {candidate.remedy}"
                    )
                if isinstance(item, type):
                    _require_complete(item, candidate)
                items.append(item)
        return items

    def _collect(
        self, kind: str, accepts: Callable[[object], TypeGuard[_T]]
    ) -> Sequence[tuple[_T, Candidate]]:
        collected: list[tuple[_T, Candidate]] = []
        for candidate in self._distinct(kind):
            with _left_out_if_refused():
                collected += ((item, candidate) for item in self._items(candidate, accepts))
        return collected


def _allowed(candidates: Iterable[Candidate], allow_list: str | None) -> Sequence[Candidate]:
    found = sorted(candidates, key=lambda c: (c.entry.name, c.distribution))
    if not allow_list:
        return found
    wanted = {name.strip() for name in allow_list.split(",") if name.strip()}
    unknown = wanted - {candidate.entry.name for candidate in found}
    if unknown:
        names = ", ".join(candidate.entry.name for candidate in found)
        raise PluginError(
            f"{ALLOW_LIST} names {', '.join(sorted(unknown))}, which is not installed; there are: "
            f"{names}. Correct it, or unset it to use all of them"
        )
    return [candidate for candidate in found if candidate.entry.name in wanted]


def _is_family(item: object) -> TypeGuard[ModelFamily]:
    return isinstance(item, ModelFamily)


def _is_method(item: object) -> TypeGuard[type[QuantizationMethod]]:
    return isinstance(item, type) and issubclass(item, QuantizationMethod)


def _require_complete(cls: type, candidate: Candidate) -> None:
    """Refuse a class that could not be constructed, or that has no name to be called by."""
    missing: list[str] = sorted(getattr(cls, "__abstractmethods__", ()))
    if not issubclass(cls, Executor) and not isinstance(getattr(cls, "name", None), str):
        missing.append("name")
    if missing:
        raise PluginError(
            f"{candidate}: {cls.__name__} does not implement {', '.join(missing)} of its contract. "
            f"{candidate.remedy}"
        )


def _probe(backend: type[Backend] | type[Executor]) -> Probe:
    found: object = backend.probe()
    if not isinstance(found, Probe):
        raise TypeError(f"it returned {found!r} instead of a Probe")
    return found


def _require_unique(what: str, names: Iterable[tuple[str, Candidate]]) -> None:
    owners: dict[str, Candidate] = {}
    for name, owner in names:
        other = owners.setdefault(name, owner)
        if other is not owner:
            raise PluginError(
                f"{other} and {owner} both register the {what} {name}. "
                f"Remove one of them: pip uninstall {owner.distribution}"
            )


def _require_known_kind(candidate: Candidate) -> None:
    if candidate.kind not in HOOK_OF_KIND or not candidate.name:
        raise PluginError(
            f"{candidate} is not called KIND.NAME with a kind that there is "
            f"({', '.join(HOOK_OF_KIND)}). {candidate.remedy}"
        )


def _module(candidate: Candidate) -> ModuleType:
    with _blamed_on(candidate, "it cannot be imported"):
        return import_module(candidate.entry.module)


def _contract(module: ModuleType, candidate: Candidate) -> tuple[int, int]:
    version = getattr(module, "API_VERSION", None)
    match version:
        case (int(major), int(minor)):
            return major, minor
    raise PluginError(
        f"{candidate} does not say which contract it was written for: {module.__name__} needs "
        f"API_VERSION = {API_VERSION}, a pair of integers, and has {version!r}. {candidate.remedy}"
    )


def _require_contract(version: tuple[int, int], candidate: Candidate) -> None:
    major, minor = version
    ours, ours_minor = API_VERSION
    written = f"{candidate} was written for contract {major}.{minor}"
    if major < ours - 1:
        raise PluginError(
            f"{written}, and this core has {ours}.{ours_minor} and still accepts {ours - 1}. "
            f"Upgrade it: pip install --upgrade {candidate.distribution}"
        )
    if major > ours or (major == ours and minor > ours_minor):
        raise PluginError(
            f"{written}, which is newer than this core's {ours}.{ours_minor}. Upgrade core from "
            f"its wheels: pip install --no-index --find-links WHEELS --upgrade core"
        )


def _validated(module: ModuleType, candidate: Candidate) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = _misspelt(manager, module) or " ".join(str(error).split())
        raise PluginError(f"{candidate} is refused: {reason}. {candidate.remedy}") from error
    needed = HOOK_OF_KIND[candidate.kind]
    if not any(caller.name == needed for caller in manager.get_hookcallers(module) or ()):
        raise PluginError(
            f"{candidate} has no {needed} marked with @hookimpl, which its kind needs. "
            f"{candidate.remedy}"
        )
    return manager


def _misspelt(manager: pluggy.PluginManager, module: ModuleType) -> str:
    """What to say about a hook that does not exist, "" if all of them do."""
    hooks = list(HOOK_OF_KIND.values())
    for caller in manager.get_hookcallers(module) or ():
        if not caller.has_spec():
            near = get_close_matches(caller.name, hooks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(hooks)}"
            return f"there is no hook {caller.name}; {hint}"
    return ""


@contextmanager
def _blamed_on(candidate: Candidate, what: str) -> Iterator[None]:
    """Turn whatever a plugin's code raises into a PluginError with its owner's name."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{candidate}: {what} ({type(error).__name__}: {error}). {candidate.remedy}"
        ) from error


@contextmanager
def _left_out_if_refused() -> Iterator[None]:
    try:
        yield
    except PluginError as error:
        _log.warning("%s", error)
