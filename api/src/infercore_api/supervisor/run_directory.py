"""Where a supervisor's processes meet, and what the next start finds of one that died.

A run directory, `infercore-run-…` with mode 0700, holds a lock that the kernel releases when the
supervisor dies, a list of its children, and the engine's socket.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from infercore.errors import ConfigError

_PREFIX = "infercore-run-"
_LOCK, _CHILDREN, _SOCKET = "lock", "children.json", "engine.sock"
_MAX_SOCKET_PATH = 100  # the kernel's limit is 108, and macOS' is 104
_YOUNG_SECONDS = 60.0  # a directory without a lock this young is being made


class RunDirectory:
    """A supervisor's own directory; a context manager that removes it.

    base: where to make it; None = XDG_RUNTIME_DIR, or the system's temporary directory.
    Raises ConfigError if sockets could not be made there.
    """

    def __init__(self, base: Path | None = None) -> None:
        parent = base or _default_base()
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = _lock(self.path / _LOCK)
        assert self._lock is not None, "nobody else knows this directory yet"
        self._children: dict[str, tuple[int, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    @property
    def socket(self) -> Path:
        """The path of the engine's socket."""
        return self.path / _SOCKET

    def remember(self, name: str, pid: int) -> None:
        """Note a child, so that the next start can find it."""
        self._children[name] = (pid, _birth(pid) or "")
        (self.path / _CHILDREN).write_text(json.dumps(self._children))


def sweep(base: Path) -> list[int]:
    """Remove what dead supervisors left below `base`; returns the children that it had to kill."""
    killed: list[int] = []
    for path in base.glob(f"{_PREFIX}*"):
        about = path.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            continue
        if not (path / _LOCK).exists():
            if time.time() - about.st_mtime >= _YOUNG_SECONDS:
                with contextlib.suppress(OSError):  # it holds something, so it is not ours
                    path.rmdir()
            continue
        lock = _lock(path / _LOCK)
        if lock is None:
            continue  # its supervisor lives
        killed += _kill_children(path / _CHILDREN)
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
    return killed


def _default_base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for base in (runtime, tempfile.gettempdir(), "/tmp"):  # noqa: S108 - the directory made in it is private
        room = len(f"{base}/{_PREFIX}xxxxxxxx/{_SOCKET}") < _MAX_SOCKET_PATH
        if base and room and os.access(base, os.W_OK | os.X_OK):
            return Path(base)
    raise ConfigError(
        "no directory for the processes to meet in: neither XDG_RUNTIME_DIR nor the temporary "
        "directory is writable. Set TMPDIR to a writable directory with a short path"
    )


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _kill_children(path: Path) -> list[int]:
    if not path.exists():
        return []
    killed: list[int] = []
    for pid, birth in json.loads(path.read_text()).values():
        if birth and _birth(pid) == birth:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return killed


def _birth(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: with its id it names it for good.

    None if there is none, or if the system does not tell; nothing is killed on a guess.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    dead = fields[0] in "ZX"
    return None if dead else fields[19]
