"""The file of settings: TOML, its keys the flags' names.

    model-id = "infercore/demo"
    max-total-tokens = 4096
    api-key = ["…"]

Flag > environment > file > default.
"""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from infercore.errors import ConfigError
from infercore_api.cli.flag import Flag
from infercore_api.cli.flags import FLAGS

NAME = "config"
ENVIRONMENT = "INFERCORE_CONFIG"


def read(file: Path, flags: Sequence[Flag]) -> dict[str, Any]:
    """{flag's key: value} of a file.

    Raises ConfigError for a file that cannot be read, is no TOML, or has a key that is no flag or
    a value of another type than the flag's.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--{NAME} {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{NAME} {file} is no TOML: {error}") from error
    known = {flag.key: flag for flag in flags}
    values: dict[str, Any] = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in known:
            raise ConfigError(f"--{NAME} {file}: there is no option {name!r}.{_meant(key, known)}")
        if key in values:
            raise ConfigError(f"--{NAME} {file}: {name!r} is given twice, with - and with _")
        values[key] = _checked(file, name, value, known[key])
    return values


def _meant(key: str, known: dict[str, Flag]) -> str:
    near = get_close_matches(key, known, 1)
    return f" Did you mean {known[near[0]].name!r}?" if near else ""


def _checked(file: Path, name: str, value: Any, flag: Flag) -> Any:
    if flag.kind == list[str]:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and all(isinstance(each, str) for each in values):
            return values
        raise ConfigError(f"--{NAME} {file}: {name!r} takes a list of strings. Given: {value!r}")
    takes = (int, float) if flag.kind is float else (flag.kind,)
    if isinstance(value, takes) and isinstance(value, bool) == (flag.kind is bool):
        return value
    raise ConfigError(
        f"--{NAME} {file}: {name!r} takes a value of type {flag.kind.__name__}. Given: {value!r}"
    )


def option() -> Any:
    """`--config FILE`: what it holds becomes the defaults of the command's other options."""

    def take(context: typer.Context, file: Path | None) -> Path | None:
        if file is not None:
            context.default_map = {**(context.default_map or {}), **read(file, FLAGS)}
        return file

    return typer.Option(
        None,
        f"--{NAME}",
        envvar=ENVIRONMENT,
        is_eager=True,
        callback=take,
        help="A TOML file of options; the environment and the command line win over it.",
    )
