"""A child as the supervisor holds it; `infercore.child` is the other end."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

OnReport: TypeAlias = Callable[[str, Mapping[str, Any]], None]
_REPORT_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start. `module` runs as `python -m MODULE FD`; `config` is the first line on FD.

    pass_fds: descriptors that it inherits besides.
    """

    name: str
    module: str
    config: Mapping[str, Any]
    pass_fds: tuple[int, ...] = ()


class ChildProcess:
    """One life of a child. `refusal` is what it said if it refused to start."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: socket.socket) -> None:
        self.process = process
        self.ready = False
        self.refusal: Mapping[str, Any] | None = None
        self.heard = time.monotonic()
        self._lifeline = lifeline

    @classmethod
    async def start(cls, spec: ChildSpec) -> "ChildProcess":
        """Start it by exec, in a process group of its own, so that Ctrl-C reaches only us."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", spec.module, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *spec.pass_fds),
                process_group=0,
            )
        ours.sendall(json.dumps(spec.config).encode() + b"\n")
        ours.setblocking(False)
        return cls(process, ours)

    async def run(self, on_report: OnReport) -> int:
        """Pass on its reports until it ends; returns its exit code, −N if signal N killed it."""
        reader, writer = await asyncio.open_connection(sock=self._lifeline, limit=_REPORT_LIMIT)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                self._hear(json.loads(line), on_report)
            return await self.process.wait()  # a line without end is a death in mid-report
        except ConnectionResetError:
            return await self.process.wait()
        finally:
            writer.close()

    def send(self, signum: int) -> None:
        """Signal it, if it still runs."""
        if self.process.returncode is None:
            self.process.send_signal(signum)

    def _hear(self, message: dict[str, Any], on_report: OnReport) -> None:
        self.heard = time.monotonic()
        report = message.pop("report")
        if report == "ready":
            self.ready = True
        elif report == "refused":
            self.refusal = message
        on_report(report, message)
