"""The parent's end of a template worker: one child process, spoken to over two pipes."""

import json
import select
import subprocess
import sys
import time
from typing import Any

START_LIMIT = 30.0  # seconds for Python and jinja2 to come up on a busy machine


class WorkerTimeoutError(Exception):
    """No answer in time; the worker is busy and must be killed."""


class WorkerDiedError(Exception):
    """The worker ended by itself, or was killed."""


class TemplateProcess:
    """One worker. Used by one thread at a time; starting it does not wait for it."""

    def __init__(self, start: dict[str, Any]) -> None:
        # -P: a module in the working folder must not shadow the real one
        command = [sys.executable, "-P", "-m", "infercore.text.template_worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._facts: dict[str, Any] | None = None
        self._start = start

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def facts(self) -> dict[str, Any]:
        """What the worker told of its templates once it had compiled them."""
        if self._facts is None:
            self._send(self._start)
            self._facts = self._receive(START_LIMIT)
        return self._facts

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait. Raises WorkerTimeoutError or WorkerDiedError."""
        self.facts()
        self._send(request)
        return self._receive(timeout)

    def close(self) -> None:
        """End the worker now, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _send(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        frame = memoryview(len(body).to_bytes(4, "little") + body)
        try:
            while frame:  # the worker is reading, so this cannot block for long
                frame = frame[self._stdin.write(frame) :]
        except BrokenPipeError:
            raise WorkerDiedError from None

    def _receive(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        size = int.from_bytes(self._read(4, deadline), "little")
        answer: dict[str, Any] = json.loads(self._read(size, deadline))
        return answer

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            remaining = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(remaining * 1000):
                raise WorkerTimeoutError
            chunk = self._stdout.read(size - len(data))
            if not chunk:
                raise WorkerDiedError
            data += chunk
        return data
