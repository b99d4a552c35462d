"""`python -m infercore.engine_process FD`: the engine's process, joined to the torch data plane.

FD is the socket to the supervisor (`infercore.child`); the configuration that arrives there is
{"socket": path, "json_output": bool, "engine": fields of EngineConfig}.
"""

import asyncio
import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from functools import partial

from infercore.child import ExitCode, Lifeline
from infercore.config import EngineConfig
from infercore.engine.link import Listener
from infercore.engine.server import EngineServer, Launched, Report
from infercore.errors import ConfigError, ExecutorLost
from infercore.executor import Progress
from infercore.logs import configure_logging, debugging

log = logging.getLogger(__name__)


def run(lifeline: Lifeline, launch: Callable[[EngineConfig, Progress], Launched]) -> int:
    """Serve the engine that `launch` builds until SIGTERM. Returns the process's exit code."""
    configure_logging("engine", json_output=lifeline.config["json_output"])
    config = EngineConfig(**lifeline.config["engine"])
    listener = Listener(f"unix:{lifeline.config['socket']}")
    try:
        return serve(config, listener, launch, lifeline.report)
    except ConfigError as error:
        if debugging():
            log.exception("the start was refused")
        lifeline.report("refused", message=str(error), exit_code=error.exit_code)
        return error.exit_code


def serve(
    config: EngineConfig,
    listener: Listener,
    launch: Callable[[EngineConfig, Progress], Launched],
    report: Report,
) -> int:
    """Serve the engine that `launch` builds until SIGTERM. Returns the process's exit code.

    Raises ConfigError if the start is refused.
    """
    faulthandler.enable()  # SIGABRT from a supervisor prints all stacks, even if C code hangs
    sys.setswitchinterval(0.0005)
    try:
        asyncio.run(
            EngineServer(partial(launch, config), config.step_timeout, report).serve(listener)
        )
    except ExecutorLost:
        log.exception("the device is gone; this engine ends")
        return ExitCode.EXECUTOR_LOST
    return 0


def main() -> None:
    lifeline = Lifeline(int(sys.argv[1]))  # first: what is imported next takes a while
    from infercore.launch import launch

    code = run(lifeline, launch)
    sys.stderr.flush()
    os._exit(code)  # a step that hangs, and its thread, must not hold the process


if __name__ == "__main__":
    main()
