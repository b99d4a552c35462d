"""`infercore`: the command line. Commands of other rooms join through `register_commands`."""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import infercore
from infercore.errors import InferCoreError
from infercore.logs import debugging
from infercore_api.cli import engine, serve
from infercore_api.cli.config import config
from infercore_api.cli.plugins import plugins
from infercore_api.cli.watermark import watermark

log = logging.getLogger(__name__)


class _Commands(TyperGroup):
    """Commands of plugins come in when one of them may be meant: `serve` waits for none."""

    _complete = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._take_plugins()
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        self._take_plugins()
        return super().list_commands(ctx)

    def _take_plugins(self) -> None:
        if self._complete:
            return
        self._complete = True
        for name, command in _plugin_commands().items():
            if name in self.commands:
                log.warning("a plugin's command %s is left out: infercore has one itself", name)
            else:
                self.commands[name] = command


def _plugin_commands() -> dict[str, Any]:
    from infercore.plugins import PluginManager

    added = typer.Typer()
    # with a callback, a group of one command, or of none, stays a group
    added.callback()(lambda: None)
    PluginManager().register_commands(added)
    group: Any = typer.main.get_command(added)
    commands: dict[str, Any] = group.commands
    return commands


def build() -> typer.Typer:
    """The command line with the commands of every plugin."""
    cli = typer.Typer(
        name="infercore",
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="InferCore serves large language models on any accelerator.",
    )

    @cli.callback()
    def _options(
        *,
        version: Annotated[
            bool,
            typer.Option(
                "--version", is_eager=True, callback=_print_version, help="Show the version."
            ),
        ] = False,
    ) -> None:
        del version

    serve.add_to(cli)
    engine.add_to(cli)
    cli.add_typer(config, name="config")
    cli.add_typer(plugins, name="plugins")
    cli.add_typer(watermark, name="watermark")
    return cli


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infercore {infercore.__version__}")
        raise typer.Exit


def main() -> None:
    run(build())


def run(command: Callable[[], object]) -> None:
    """Run it; an error that was raised on purpose is one line and an exit code."""
    try:
        command()
    except InferCoreError as error:
        if debugging():
            traceback.print_exc()
        sys.stderr.write(f"infercore: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
