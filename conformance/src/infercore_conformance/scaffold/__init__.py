"""`infercore new-backend NAME`: a distribution of one's own, complete, that passes Core at once.

The templates are a backend called acme; another name takes that one's place.
"""

import keyword
import re
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from infercore.errors import ConfigError
from infercore.plugins import installed

STAND_IN = "acme"  # the name that the templates have
# file of the distribution → its template
FILES = {
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    ".github/workflows/conformance.yml": "conformance.yml.in",
    "src/acme_infercore/__init__.py": "plugin.py.in",
    "src/acme_infercore/backend.py": "backend.py.in",
}


def new_backend(
    name: Annotated[
        str, typer.Argument(help="What --backend will call it: a Python name in lower case.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to make; NAME-infercore by default."),
    ] = None,
) -> None:
    """Write a complete distribution with a backend that works: put your device into it."""
    folder = write_backend(name, output)
    typer.echo(
        f"{folder} has backend {name}. It works as it is, on the CPU. Next:\n"
        f"  cd {folder}\n"
        "  pip install --no-deps -e .\n"
        f"  infercore conformance run --backend {name}"
    )


def write_backend(name: str, folder: Path | None = None) -> Path:
    """Write the distribution to `folder`, by default NAME-infercore, which must not exist.

    Returns the folder. Raises ConfigError for a name or a folder that cannot be taken.
    """
    require_name(name)
    folder = Path(_named("acme-infercore", name, "-")) if folder is None else folder
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(
            f"{folder} exists already; move it away, or choose another with --output"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    templates = resources.files(__name__) / "templates"
    for target, template in FILES.items():
        file = folder / _named(target, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_filled((templates / template).read_text("utf-8"), name), "utf-8")
    return folder


def require_name(name: str) -> None:
    """Raises ConfigError for what cannot name a new backend."""
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot name a backend: it takes a Python name of lower-case letters, digits "
            "and underscores, such as acme or acme_2"
        )
    for candidate in installed():
        if candidate.kind == "backend" and candidate.name == name:
            raise ConfigError(
                f"backend {name} is installed already, by {candidate.distribution} "
                f"{candidate.version}; choose another name"
            )


def _filled(template: str, name: str) -> str:
    """The template about `name`: names of packages and classes follow their own conventions."""
    words = name.replace("_", " ").title()
    replaced = {
        "AcmeBackend": f"{words.replace(' ', '')}Backend",
        "Acme": words,
        '"acme-infercore"': f'"{_named("acme-infercore", name, "-")}"',
        "# acme-infercore": f"# {_named('acme-infercore', name, '-')}",
        STAND_IN: name,
    }
    return re.sub("|".join(map(re.escape, replaced)), lambda found: replaced[found[0]], template)


def _named(text: str, name: str, underscore: str = "_") -> str:
    return text.replace(STAND_IN, name.replace("_", underscore))
