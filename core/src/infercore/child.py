"""A process that a supervisor started: its configuration, its reports, its end.

One Unix socket pair joins the two. The supervisor writes one JSON line, the configuration, and
then nothing: end of file means that it is gone. The child writes JSON lines, its reports, each an
object whose "report" says what it is. So nothing secret stands on a command line, and no child
outlives its supervisor.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
from enum import IntEnum
from typing import Any

_PR_SET_PDEATHSIG = 1


class ExitCode(IntEnum):
    """Why a process ended, beyond what `InferCoreError.exit_code` says."""

    STEP_TIMEOUT = 20  # the watchdog saw no step finish in time
    EXECUTOR_LOST = 21  # the device or a rank is gone
    CRASH_LOOP = 22  # the supervisor gave up: five deaths in five minutes
    DRAIN_TIMEOUT = 23  # it was asked to end, and requests were cut after the graceful timeout


class Lifeline:
    """The child's end of the socket pair."""

    def __init__(self, fd: int) -> None:
        """Bind this process's life to its supervisor's.

        fd: the inherited socket. After this, the death of the supervisor kills this process:
        at once where the kernel can be asked to, else when the socket ends.
        """
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self.config: dict[str, Any] = json.loads(self._read_line())
        threading.Thread(target=self._die_at_end, name="lifeline", daemon=True).start()

    def report(self, report: str, **facts: Any) -> None:
        """Tell the supervisor; what it does not read for long is dropped, not waited for."""
        line = json.dumps({"report": report, **facts}).encode() + b"\n"
        try:
            self._socket.send(line, socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError):
            return  # a stopped supervisor must not stop its children; a dead one ends them anyway

    def _read_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            part = self._socket.recv(65536)
            if not part:
                os._exit(1)  # it died before it had said anything
            line += part
        return line

    def _die_at_end(self) -> None:
        while self._socket.recv(4096):
            pass
        os._exit(1)
