"""The commands `plugins …`: what is installed, and whether it can be used here."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

plugins = typer.Typer(no_args_is_help=True, help="Installed plugins.")


@plugins.callback()
def _group() -> None:
    # with a callback, a group of one command stays a group
    pass


@plugins.command("list")
def list_plugins(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List every plugin: name, distribution, version, contract, and why it cannot be used."""
    from rich.console import Console
    from rich.table import Table

    from infercore.plugins import PluginManager

    statuses = PluginManager().list()
    if as_json:
        typer.echo(json.dumps([asdict(status) for status in statuses], indent=2))
        return
    table = Table("name", "distribution", "version", "contract", box=None)
    table.add_column("available", overflow="fold")
    for status in statuses:
        available = "yes" if status.available else f"no: {status.reason}"
        table.add_row(status.name, status.distribution, status.version, status.contract, available)
    Console().print(table)
