"""The command `serve`: a signature made from the table of flags."""

import inspect
import sys
from typing import Any

import typer

from infercore_api.cli.flag import Flag
from infercore_api.cli.flags import FLAGS


def add_to(cli: typer.Typer) -> None:
    """Add `serve` to the command line."""
    cli.command("serve")(_with_signature(serve))


def serve(**values: Any) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM: TGI's API and OpenAI's.

    Every option can be set by its environment variable; the command line wins.
    """
    from infercore.logs import configure_logging
    from infercore_api.cli.options import serve_options
    from infercore_api.supervisor.serve import serve as run

    configure_logging("supervisor", json_output=bool(values["json_output"]))
    sys.exit(run(serve_options(values)))


def _with_signature(command: Any) -> Any:
    parameters = [
        inspect.Parameter(
            flag.key, inspect.Parameter.KEYWORD_ONLY, default=_option(flag), annotation=_type(flag)
        )
        for flag in FLAGS
    ]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {flag.key: _type(flag) for flag in FLAGS}
    return command


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
