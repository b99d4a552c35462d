"""The plugin that offers the defects: a distribution whose entry points are `backend.BASE+ID`."""

from pathlib import Path

from planted.catalogue import DEFECTS
from plugin_packages import install, plugin

BASES = ("cpu", "plain", "sim")
PLAIN = """
@hookimpl
def register_backend():
    from planted.plain import PlainBackend

    return PlainBackend
"""
HOOK = """
@hookimpl
def register_backend():
    from planted.backend import backend_class

    return backend_class({base!r}, {defect!r})
"""


def install_defects(site: Path) -> None:
    """Write the plugin below `site`, which is to be on sys.path as this package is."""
    modules = {
        f"planted_in_{base}_{d}": (f"{base}+{d}", HOOK.format(base=base, defect=d))
        for base in BASES
        for d in DEFECTS
    }
    modules["planted_in_nothing"] = ("plain", PLAIN)
    install(
        site,
        "infercore-planted-defects",
        {f"backend.{name}": module for module, (name, _) in modules.items()},
        {module: plugin(hook) for module, (_, hook) in modules.items()},
    )
