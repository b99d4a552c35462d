"""`infercore serve`, once its options are known: bind, find the model, supervise."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from infercore.config import EngineConfig
from infercore.engine.link import Link
from infercore.errors import ConfigError
from infercore_api.supervisor.child_process import ChildSpec
from infercore_api.supervisor.console import ServeConsole
from infercore_api.supervisor.run_directory import RunDirectory
from infercore_api.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

_BACKLOG = 2048
# of the addresses that mean every interface, one that is always there
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - they are named, not bound


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the operator chose for a server.

    router: the fields of RouterOptions; a mapping, since it goes to another process.
    graceful_timeout: seconds that live requests are given at the end.
    engine_module: what runs as the engine's process.
    link: where an engine is that somebody else runs; None = one is started here.
    """

    engine: EngineConfig
    router: Mapping[str, Any] = field(repr=False)  # keys are in it
    hostname: str = "127.0.0.1"
    port: int = 3000
    graceful_timeout: float = 90.0
    json_output: bool = False
    engine_module: str = "infercore.engine_process"
    link: Link | None = None


def serve(options: ServeOptions) -> int:
    """Serve until a signal. Returns the exit code. Raises ConfigError before anything loads."""
    with ExitStack() as held:
        _leave_at_signals(held)
        listener = held.enter_context(bind(options.hostname, options.port))
        if (grpc_port := options.router["grpc_port"]) is not None:
            bind(options.hostname, grpc_port, "--grpc-port").close()  # the router binds it again
        console = held.enter_context(
            ServeConsole(
                url_of(listener), _limits(options), _auth(options), json_output=options.json_output
            )
        )
        directory = held.enter_context(RunDirectory())
        engine, model_path = _resolve(options.engine, console.progress)
        link = options.link or Link(f"unix:{directory.socket}")
        supervisor = Supervisor(
            None if options.link else engine_spec(options, engine, directory),
            router_spec(options, model_path, link, listener),
            directory,
            console,
            silence=engine.step_timeout,
            graceful_timeout=options.graceful_timeout,
        )
        return asyncio.run(supervisor.run())


def _leave_at_signals(held: ExitStack) -> None:
    """Until the supervisor takes the signals over, each ends the start, and gives back `held`."""

    def leave(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        held.close()
        os._exit(0)  # a download under way, in its thread, must not hold the process

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, leave)


def bind(hostname: str, port: int, flag: str = "--port") -> socket.socket:
    """A listening socket. Raises ConfigError, at once, if the address cannot be had."""
    try:
        found = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--hostname {hostname}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {hostname} port {port}: {error.strerror}. Stop the program that "
            f"uses it (`ss -ltnp` names it), or choose another with {flag}"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """What a client on this machine would call."""
    host, port = listener.getsockname()[:2]
    host = str(_LOOPBACK_OF.get(host, host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def engine_spec(options: ServeOptions, engine: EngineConfig, directory: RunDirectory) -> ChildSpec:
    return ChildSpec(
        "engine",
        options.engine_module,
        {
            "socket": str(directory.socket),
            "json_output": options.json_output,
            "engine": asdict(engine),
        },
    )


def router_spec(
    options: ServeOptions, model_path: Path, link: Link, listener: socket.socket
) -> ChildSpec:
    return ChildSpec(
        "router",
        "infercore_api.router.main",
        {
            "engine": asdict(link),
            "listen": listener.fileno(),
            "hostname": options.hostname,
            "model_path": str(model_path),
            "json_output": options.json_output,
            "graceful_timeout": options.graceful_timeout,
            "router": dict(options.router),
        },
        pass_fds=(listener.fileno(),),
    )


def _resolve(
    config: EngineConfig, progress: Callable[[str, int, int], None]
) -> tuple[EngineConfig, Path]:
    """Download what is missing, with progress; the engine then finds that very commit."""
    from infercore.hub import resolve

    model = resolve(config.model, config.revision, progress=progress)
    if model.commit:
        config = replace(config, revision=model.commit)
    return config, model.path


def _limits(options: ServeOptions) -> str:
    router = options.router
    return (
        f"{router['max_concurrent_requests']} requests at once, "
        f"bodies of {router['payload_limit']:,} bytes"
    )


def _auth(options: ServeOptions) -> str:
    if options.router["api_keys"] or options.router["api_key_file"]:
        return "every request but those for health needs an API key"
    if options.hostname in ("127.0.0.1", "localhost", "::1"):
        return "none; only this machine can connect"
    return "none: ANYONE who reaches this address can use the model; set --api-key"
