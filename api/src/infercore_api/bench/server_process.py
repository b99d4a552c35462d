"""A server started to be measured: when it was ready, and what its router's CPU time is."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infercore.errors import ConfigError
from infercore_api.bench.sse_client import Target

_SERVE = (sys.executable, "-m", "infercore_api.cli.main", "serve", "--port", "0", "--json-output")
_READY_SECONDS = 600.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02
_PROC = Path("/proc")


class ServerProcess:
    """`infercore serve ARGUMENTS` on a free port. A context manager; leaving it stops the server.

    command: another that starts such a server, for engines of one's own.
    url: where it listens. ready_seconds: from the start of the process to a healthy answer.
    Raises ConfigError, with the server's last words, if it does not come up.
    """

    def __init__(self, arguments: Sequence[str], command: Sequence[str] = _SERVE) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the server runs
        began = time.perf_counter()
        self.process = subprocess.Popen(
            (*command, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self.url = self._wait_for_url(began)
            while Target(self.url).get("/health")[0] != 200:
                self._require_alive(began)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.perf_counter() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and wait. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()

    def child(self, module: str) -> int | None:
        """Process id of the server's child that runs `module`; None where /proc does not tell."""
        for stat in _PROC.glob("[0-9]*/stat"):
            try:
                parent = int(_stat_fields(stat)[1])
                words = stat.with_name("cmdline").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue  # it ended meanwhile
            if parent == self.process.pid and module.encode() in words:
                return int(stat.parent.name)
        return None

    def _wait_for_url(self, began: float) -> str:
        while True:
            for message in self._messages():
                if "url" in message:
                    url: str = message["url"]
                    return url
            self._require_alive(began)
            time.sleep(_POLL_SECONDS)

    def _messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines() if line.startswith("{")]

    def _lines(self) -> list[str]:
        """Whole lines of the log so far; `pread`, because the server writes at the same offset."""
        descriptor = self._log.fileno()
        text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
        return text.split("\n")[:-1]

    def _require_alive(self, began: float) -> None:
        code, seconds = self.process.poll(), time.perf_counter() - began
        if code is None and seconds < _READY_SECONDS:
            return
        what = f"was not ready after {seconds:.0f} s" if code is None else f"ended with {code}"
        last = "\n".join(self._lines()[-10:])
        raise ConfigError(f"the server to measure {what}; its log ends with:\n{last}")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process used so far, all its threads, user and system. Linux only."""
    fields = _stat_fields(_PROC / str(pid) / "stat")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat_fields(stat: Path) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second may hold spaces and brackets."""
    return stat.read_text().rpartition(")")[2].split()
