"""The real server, `infercore serve`, as a process over the backend under test, and its client.

It serves a tiny model of the first architecture that the backend serves, with the bundled model's
tokenizer and chat template, so that texts are texts. Nothing but the standard library talks to it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infercore import demo
from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore_conformance.http_client import Client
from infercore_conformance.models import config_of, served, write_model
from infercore_conformance.needs import Need
from infercore_conformance.running import config_for
from infercore_conformance.subject import Subject

API = "infercore_api"
START = 300.0  # seconds, in which a backend may compile
END = 60.0  # seconds from SIGTERM to the end
LENGTH = 128  # tokens of the longest sequence
ROWS, TOKENS = 4, 64  # most of a step: few, so that little is compiled
NAME = "tiny"  # that clients ask for


@dataclass(frozen=True, slots=True)
class Server(Need):
    """There is a server to run the backend in, and a tiny model that it can serve."""

    def answer(self, can: Capabilities) -> Capability:
        if find_spec(API) is None:
            return Capability(Support.NOT_IMPLEMENTED, "infercore-api is not installed here")
        if not served(can.architectures):
            return Capability(Support.UNSUPPORTED, "no tiny model can be made of what it serves")
        return FULL

    def __str__(self) -> str:
        return "server"


SERVER = Server()


def write_text_model(folder: Path, architecture: str) -> None:
    """A tiny model whose tokens are those of the bundled model's tokenizer."""
    source = Path(demo.__path__[0])
    bundled = json.loads((source / "config.json").read_text())
    ids = {key: bundled[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    write_model(folder, config_of(architecture, **ids))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder)
    shutil.copy(source / "chat_template.jinja", folder)


@dataclass
class ServerProcess(Client):
    """A server in a process, and what it was started with. dtype: that it computes in."""

    process: "subprocess.Popen[bytes]"
    log: Path
    dtype: str

    def wait_ready(self) -> None:
        """Return when it serves. Raises AssertionError with the end of its log if it does not."""
        deadline = time.monotonic() + START
        while not self._ready():
            ended = self.process.poll()
            assert ended is None, f"the server ended with {ended}:\n{self._last_lines()}"
            assert time.monotonic() < deadline, f"it does not come up:\n{self._last_lines()}"
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return self.get("/health").status == 200
        except (OSError, HTTPException):
            return False  # nobody listens yet

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_ended(self) -> int:
        """The exit status. Raises AssertionError if there is none in time."""
        try:
            return self.process.wait(END)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on {END:g} s after SIGTERM") from None

    def kill(self) -> None:
        """End it, whatever it does. The supervisor's children follow it."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(END)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@dataclass
class Host:
    """Keeps one server of a subject; a new one where the last has ended."""

    subject: Subject
    folder: Path = field(init=False)
    model: Path = field(init=False)
    _server: ServerProcess | None = None

    def __post_init__(self) -> None:
        # short, since the server's sockets are below it
        self.folder = Path(tempfile.mkdtemp(prefix="ic-"))
        self.model = self.folder / "model"
        write_text_model(self.model, served(self.subject.capabilities.architectures)[0])

    def server(self) -> ServerProcess:
        """One that is ready."""
        if self._server is None or self._server.process.poll() is not None:
            self._server = self._start()
            self._server.wait_ready()
        return self._server

    def options(self) -> dict[str, Any]:
        """What the server is told, as fields of `EngineConfig`."""
        return {
            "backend": self.subject.name,
            "dtype": config_for(self.subject.capabilities).dtype,
            "max_model_len": LENGTH,
            "max_num_seqs": ROWS,
            "max_batch_tokens": TOKENS,
        }

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> ServerProcess:
        options, port, log = self.options(), _free_port(), self.folder / "server.log"
        flags = {
            "--model-id": self.model,
            "--served-model-name": NAME,
            "--backend": options["backend"],
            "--dtype": options["dtype"],
            "--max-total-tokens": options["max_model_len"],
            "--max-batch-size": options["max_num_seqs"],
            "--max-batch-prefill-tokens": options["max_batch_tokens"],
            "--port": port,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        with log.open("ab") as written:
            process = subprocess.Popen(
                [sys.executable, "-m", "infercore_conformance.http_child", "serve", *words],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                env={**os.environ, "XDG_RUNTIME_DIR": str(self.folder)},
                start_new_session=True,  # so that all of it can be killed
            )
        return ServerProcess(port, process, log, options["dtype"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
