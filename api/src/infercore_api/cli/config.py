"""`infercore config show`: what `serve` would be told, and by whom."""

import json
import os
import sys
from typing import Annotated, Any

import typer

from infercore_api.cli.flag import TGI_ONLY, Flag
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.serve import with_flags

_HIDDEN = "(hidden)"
config = typer.Typer(help="The options of serve.", no_args_is_help=True)


@config.callback()
def _group() -> None:
    """A group of one command stays a group."""


def show(
    context: typer.Context,
    *,
    origin: Annotated[
        bool, typer.Option("--origin", help="Say where each value comes from.")
    ] = False,
    **values: Any,
) -> None:
    """Print the options that `serve` would run with, checked as it checks them.

    Takes serve's flags, variables and file. Keys are not shown.
    """
    from infercore_api.cli.options import serve_options

    file = values.pop("config")
    serve_options(values)
    width = max(len(flag.name) for flag in FLAGS)
    for flag in FLAGS:
        value = values[flag.key]
        if flag.section == TGI_ONLY and value in (None, flag.default):
            continue
        line = f"{flag.name:{width}}  {_shown(flag, value)}"
        sys.stdout.write(f"{line}  # {_origin(context, flag, file)}\n" if origin else f"{line}\n")


config.command("show")(with_flags(show))


def _shown(flag: Flag, value: Any) -> str:
    if flag.secret and value:
        return _HIDDEN
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


def _origin(context: typer.Context, flag: Flag, file: Any) -> str:
    source = context.get_parameter_source(flag.key)
    assert source is not None, "every flag is a parameter"
    match source.name:
        case "COMMANDLINE":
            return "flag"
        case "ENVIRONMENT":
            names = flag.env.split()
            return "environment: " + next(name for name in names if os.environ.get(name))
        case "DEFAULT_MAP":
            return f"file: {file}"
        case _:
            return "default"
