"""The classes behind `--backend BASE` and `--backend BASE+ID`."""

from infercore.backend import Backend
from infercore.executor import Executor
from infercore.plugins import PluginManager
from planted.catalogue import DEFECTS
from planted.plain import PlainBackend
from planted.planting import planted


def base_class(name: str) -> type[Backend] | type[Executor]:
    """An installed backend, or the plain one of this package."""
    return PlainBackend if name == PlainBackend.name else PluginManager().backend(name)


def backend_class(base: str, defect: str) -> type[Backend] | type[Executor]:
    """Backend `base` with the defect in it."""
    return planted(base_class(base), DEFECTS[defect])
