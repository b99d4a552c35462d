"""Little distributions with a plugin, written to disk as an installer would leave them."""

from collections.abc import Mapping
from pathlib import Path

FAMILY = """
from infercore.model_spec import ModelFamily

def build(config):
    raise NotImplementedError("nothing is built here")
"""


def install(
    site: Path,
    distribution: str,
    entry_points: Mapping[str, str],
    modules: Mapping[str, str],
    *,
    version: str = "1.2.3",
) -> None:
    """Write a distribution below `site`, which is to be on sys.path.

    entry_points: {"backend.acme": "acme"}, of our group. modules: {"acme": source}; a dotted name
    is a module of a package.
    """
    for name, source in modules.items():
        parts = name.split(".")
        folder = site.joinpath(*parts[:-1])
        folder.mkdir(parents=True, exist_ok=True)
        if len(parts) > 1 and parts[0] not in modules:
            (folder / "__init__.py").touch()
        is_package = any(other.startswith(f"{name}.") for other in modules)
        target = folder / parts[-1] / "__init__.py" if is_package else folder / f"{parts[-1]}.py"
        target.parent.mkdir(exist_ok=True)
        target.write_text(source)
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[infercore.plugins]\n{lines}")


def plugin(body: str, *, api_version: str = "(1, 0)") -> str:
    """The source of a plugin module: the contract, the marker, and `body`."""
    return f"from infercore.hookspecs import hookimpl\n\nAPI_VERSION = {api_version}\n\n\n{body}\n"


def family(*architectures: str, name: str = "acme") -> str:
    """The source of a module that registers one model family."""
    return FAMILY + plugin(
        "@hookimpl\ndef register_models():\n"
        f"    return [ModelFamily({name!r}, {architectures!r}, build)]"
    )
