"""A real server as a process: started, asked, killed, and looked at from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 60.0  # the machine may be busy with other tests
SUPPORT = Path(__file__).parent
QUICK = ("--dtype", "float32", "--max-total-tokens", "512")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `holds`, at most so long."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s: {what}"
        time.sleep(0.05)


class Server:
    """`infercore serve` in a process, with its run directory in a folder of its own.

    toy: with an engine on the NumPy executor, that starts in a fraction of the time.
    """

    def __init__(
        self, folder: Path, *flags: str, toy: bool = False, env: dict[str, str] | None = None
    ) -> None:
        self._engine_module = "toy_engine_process" if toy else "infercore.engine_process"
        self.runtime = folder / "run"
        self.runtime.mkdir(exist_ok=True)
        self.log = folder / "log.txt"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        main = "toy_serve" if toy else "infercore_api.cli.main"
        path = [str(SUPPORT)] if toy else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", main, "serve", "--port", str(self.port), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "XDG_RUNTIME_DIR": str(self.runtime),
                    "INFERCORE_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
                    **(env or {}),
                },
            )

    def wait_ready(self) -> None:
        """Return when it serves; raises with its log if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while self.health() != 200:
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                raise AssertionError(f"no server (exit code {ended}):\n{self.log.read_text()}")
            time.sleep(0.05)

    def health(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def post(self, path: str, body: Any) -> Any:
        """The JSON that a POST answers. Raises HTTPError for a refusal."""
        return json.loads(self.open(path, body).read())

    def open(self, path: str, body: Any) -> Any:
        """The response to a POST, to be read."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=START_SECONDS)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def child(self, module: str) -> psutil.Process:
        """The child that runs `module`."""
        for process in psutil.Process(self.process.pid).children():
            if module in process.cmdline():
                return process
        raise AssertionError(f"no child runs {module}:\n{self.log.read_text()}")

    @property
    def engine(self) -> psutil.Process:
        return self.child(self._engine_module)

    @property
    def router(self) -> psutil.Process:
        return self.child("infercore_api.router.main")

    def family(self) -> list[psutil.Process]:
        """The supervisor and all that descend from it."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def serving(
    folder: Path, *flags: str, toy: bool = False, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server that is ready; whatever became of it, nothing of it is left afterwards."""
    with starting(folder, *flags, toy=toy, env=env) as server:
        server.wait_ready()
        yield server


@contextmanager
def starting(
    folder: Path, *flags: str, toy: bool = False, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server that may not be ready yet, or never."""
    server = Server(folder, *flags, toy=toy, env=env)
    try:
        yield server
    finally:
        left = []
        if server.process.poll() is None:
            left = server.family()
        for process in left:
            kill_if_alive(process)
        server.process.wait(10)


def kill_if_alive(process: psutil.Process) -> None:
    """Kill a process that may have ended meanwhile."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
