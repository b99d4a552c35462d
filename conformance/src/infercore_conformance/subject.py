"""The backend that is held against the contract: found by its name, as the server finds it."""

from dataclasses import dataclass, replace
from importlib import import_module, metadata

from infercore.backend import Backend
from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.errors import HardwareUnavailable
from infercore.executor import Executor, Probe
from infercore.plugins import PluginManager, installed

BACKEND = "backend"  # answers checks of what only a Backend has; no name of an extra


@dataclass(frozen=True, slots=True)
class Implementation:
    """Who brings the backend. Texts are empty where its distribution does not say.

    contract: the API_VERSION that it was written for, "1.0".
    """

    distribution: str
    version: str
    contract: str
    summary: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend under test.

    capabilities: those that an executor of it declared; asked once, for the whole run.
    """

    name: str
    implementation: Implementation
    cls: type[Backend] | type[Executor]
    probe: Probe
    capabilities: Capabilities

    @classmethod
    def open(cls, name: str) -> "Subject":
        """Raises PluginError for a name that cannot be used, HardwareUnavailable without device."""
        found = PluginManager().backend(name)
        probe = found.probe()
        if not probe.available:
            raise HardwareUnavailable(f"backend {name} cannot run here: {probe.reason}")
        executor = build(found)
        try:
            capabilities = executor.capabilities()
        finally:
            executor.shutdown()
        return cls(name, implementation(name), found, probe, capabilities)

    @property
    def answers(self) -> Capabilities:
        """What decides which checks run: the capabilities, and whether it is a Backend."""
        executor_only = Capability(Support.UNSUPPORTED, "it is an Executor of its own, no Backend")
        is_backend = FULL if issubclass(self.cls, Backend) else executor_only
        extras = {**self.capabilities.extras, BACKEND: is_backend}
        return replace(self.capabilities, extras=extras)

    def executor(self) -> Executor:
        """A new one, nothing loaded."""
        return build(self.cls)


def build(cls: type[Backend] | type[Executor]) -> Executor:
    """An executor of a registered class, as `infercore serve` makes it."""
    built = cls()
    return built.executor() if isinstance(built, Backend) else built


def implementation(name: str) -> Implementation:
    """The distribution that brings backend `name`, from its metadata."""
    found = next(c for c in installed() if c.kind == "backend" and c.name == name)
    contract = ".".join(map(str, import_module(found.entry.module).API_VERSION))
    summary, url = _described(found.distribution)
    return Implementation(found.distribution, found.version, contract, summary, url)


def _described(distribution: str) -> tuple[str, str]:
    """(summary, first link) of a distribution."""
    about = metadata.metadata(distribution)
    links = about.get_all("Project-URL") or [""]  # "Homepage, https://…"
    summaries = about.get_all("Summary") or [""]
    return summaries[0], links[0].partition(",")[2].strip()
