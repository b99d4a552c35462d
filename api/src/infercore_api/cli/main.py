"""`infercore`: the command line. Commands of other rooms join through `register_commands`."""

import sys
import traceback
from typing import Annotated

import typer

import infercore
from infercore.errors import InferCoreError
from infercore.logs import debugging
from infercore_api.cli import serve
from infercore_api.cli.plugins import plugins


def build() -> typer.Typer:
    """The command line with the commands of every plugin."""
    from infercore.plugins import PluginManager

    cli = typer.Typer(
        name="infercore",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="InferCore serves large language models on any accelerator.",
    )

    @cli.callback()
    def _options(
        *,
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_print_version)
        ] = False,
    ) -> None:
        del version

    serve.add_to(cli)
    cli.add_typer(plugins, name="plugins")
    PluginManager().register_commands(cli)
    return cli


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infercore {infercore.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error that was raised on purpose is one line and an exit code."""
    try:
        build()()
    except InferCoreError as error:
        if debugging():
            traceback.print_exc()
        sys.stderr.write(f"infercore: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
