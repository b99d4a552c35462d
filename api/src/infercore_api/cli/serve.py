"""The command `serve`: a signature made from the table of flags."""

import inspect
import sys
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from infercore_api.cli import config_file
from infercore_api.cli.flag import Flag
from infercore_api.cli.flags import FLAGS


def add_to(cli: typer.Typer) -> None:
    """Add `serve` to the command line."""
    cli.command("serve")(with_flags(serve))


def serve(**values: Any) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM: TGI's API and OpenAI's.

    Every option can be set by its environment variable or in a file; the command line wins.
    """
    from infercore.logs import configure_logging
    from infercore_api.cli.options import serve_options
    from infercore_api.supervisor.serve import serve as run

    del values[config_file.NAME]  # what it says stands in the others already
    configure_logging("supervisor", json_output=bool(values["json_output"]))
    sys.exit(run(serve_options(values)))


def with_flags(command: Any, flags: Sequence[Flag] = FLAGS) -> Any:
    """`command`, whose keyword arguments become `flags` and `--config`; it may have its own."""
    own = inspect.signature(command).parameters.values()
    parameters = [each for each in own if each.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters.append(_parameter(config_file.NAME, config_file.option(), Path | None))
    parameters += [_parameter(flag.key, _option(flag), _type(flag)) for flag in flags]

    @wraps(command)
    def with_them(**values: Any) -> Any:
        return command(**values)

    filled: Any = with_them
    filled.__signature__ = inspect.Signature(parameters)
    filled.__annotations__ = {each.name: each.annotation for each in parameters}
    return filled


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _type(flag: Flag) -> Any:
    return flag.kind if flag.default is not None else flag.kind | None


def _option(flag: Flag) -> Any:
    return typer.Option(
        flag.default,
        *flag.spellings,
        envvar=flag.env.split() or None,
        help=flag.help,
        rich_help_panel=flag.section,
        show_default=flag.default is not None and flag.kind is not bool,
    )
