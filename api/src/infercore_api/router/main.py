"""`python -m infercore_api.router.main FD`: the router's process.

FD is the socket to the supervisor (`infercore.child`); the configuration that arrives there is
{"engine": gRPC address, "listen": descriptor of the listening socket, "hostname": its address,
"model_path": folder, "json_output": bool, "graceful_timeout": seconds,
"router": fields of RouterOptions}.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from starlette.types import ASGIApp

from infercore.child import ExitCode, Lifeline
from infercore.engine.info import EngineInfo
from infercore.engine.link import Link
from infercore.errors import ConfigError
from infercore.logs import configure_logging, debugging
from infercore.plugins import PluginManager
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.app import create_app
from infercore_api.router.connection import HttpProtocol
from infercore_api.router.grpc_engine_client import GrpcEngineClient
from infercore_api.router.options import RouterOptions
from infercore_api.router.state import RouterState
from infercore_api.router.tokenization import read_tokenizer_info

if TYPE_CHECKING:
    from infercore_api.router.grpc.server import GrpcServer

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 3  # for answers that are complete and not yet read


class _Server(uvicorn.Server):
    """uvicorn, without signal handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _options(fields: dict[str, Any]) -> RouterOptions:
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    return RouterOptions(**values)


def http_server(app: ASGIApp, options: RouterOptions) -> uvicorn.Server:
    """The HTTP server of `app`, which listens where its `serve` is told to."""
    return _Server(
        uvicorn.Config(
            app,
            http=HttpProtocol.within(options.read_timeout),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )


async def serve(lifeline: Lifeline) -> int:
    """Serve until SIGTERM, then drain. Returns the process's exit code. Raises ConfigError."""
    config = lifeline.config

    def tell_ready(info: EngineInfo) -> None:
        lifeline.report("ready", info=asdict(info))

    engine = GrpcEngineClient(Link(**config["engine"]), on_ready=tell_ready)
    model = Path(config["model_path"])
    template = ChatTemplate.open(model)
    state = RouterState(
        engine,
        Tokenizer(model),
        template,
        _options(config["router"]),
        read_tokenizer_info(model),
    )
    server = http_server(create_app(state, PluginManager().register_routes), state.options)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await engine.start()
    grpc_server = await _serve_grpc(state, config["hostname"])
    gc.collect()
    gc.freeze()  # what was loaded stays, so later collections need not look at it
    serving = asyncio.create_task(server.serve([socket.socket(fileno=config["listen"])]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        drained = await engine.drain(config["graceful_timeout"])
        if not drained:
            log.warning("requests were cut after %.0f s of draining", config["graceful_timeout"])
    finally:
        await engine.close()
        if grpc_server is not None:
            await grpc_server.stop(_CLOSE_SECONDS)
        server.should_exit = True
        await serving
        template.close()
        state.workers.close()
    return 0 if drained else ExitCode.DRAIN_TIMEOUT


async def _serve_grpc(state: RouterState, hostname: str) -> "GrpcServer | None":
    """The gRPC server, if one is wanted; its libraries are loaded only then."""
    port = state.options.grpc_port
    if port is None:
        return None
    from infercore_api.router.grpc.server import GrpcServer

    server = GrpcServer(state, hostname, port)
    await server.start()
    return server


def main() -> int:
    lifeline = Lifeline(int(sys.argv[1]))
    configure_logging("router", json_output=lifeline.config["json_output"])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        return uvloop.run(serve(lifeline))
    except ConfigError as error:
        if debugging():
            log.exception("the start was refused")
        lifeline.report("refused", message=str(error), exit_code=error.exit_code)
        return error.exit_code


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # worker threads that tokenize must not hold the process
