"""`infercore engine`: an engine without a router, for servers elsewhere."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from infercore_api.cli.flags import FLAGS
from infercore_api.cli.serve import with_flags

log = logging.getLogger(__name__)

ENGINE_FLAGS = tuple(flag for flag in FLAGS if flag.field.startswith("engine."))


class _Log:
    """Tells the log what a supervisor would be told: that it loads, and that it is ready."""

    def __init__(self) -> None:
        self._phase = ""

    def __call__(self, report: str, **facts: Any) -> None:
        if report == "ready":
            log.info("ready")
        elif report == "progress" and facts["phase"] != self._phase:
            self._phase = facts["phase"]
            log.info("%s", self._phase)


def engine(
    *,
    listen: Annotated[str, typer.Option(help="HOST:PORT to be found at.")],
    secret_file: Annotated[
        Path | None, typer.Option(help="File with the secret that a router must show.")
    ] = None,
    tls_certificate_file: Annotated[
        Path | None, typer.Option(help="Certificate (PEM); needed beyond loopback.")
    ] = None,
    tls_key_file: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    json_output: Annotated[bool, typer.Option(help="Log JSON lines.")] = False,
    **values: Any,
) -> None:
    """Serve a model to `infercore serve --engine HOST:PORT` until Ctrl-C or SIGTERM.

    The model's and the batching options of serve are this command's too. Nothing starts it again
    when it ends: that is for whoever runs it; routers come back by themselves.
    """
    from infercore.engine.link import tcp_listener
    from infercore.engine_process import serve
    from infercore.launch import launch
    from infercore.logs import configure_logging
    from infercore_api.cli.options import serve_options

    configure_logging("engine", json_output=json_output)
    del values["config"]
    options = serve_options(values)
    listener = tcp_listener(listen, secret_file, tls_certificate_file, tls_key_file)
    sys.exit(serve(options.engine, listener, launch, _Log()))


def add_to(cli: typer.Typer) -> None:
    """Add `engine` to the command line."""
    cli.command("engine")(with_flags(engine, ENGINE_FLAGS))
