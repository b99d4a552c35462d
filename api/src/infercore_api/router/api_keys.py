"""ApiKeys: what opens the server, from the command line and from a file."""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path

from infercore.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
_KEY = re.compile(r"[\x21-\x7e]+")


def check_key(key: str, source: str) -> str:
    """The key itself. Raises ConfigError, without showing it, for one that no header can carry."""
    if _KEY.fullmatch(key) is None:
        raise ConfigError(
            f"{source}: a key must be visible ASCII characters without spaces, and not empty"
        )
    return key


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys of a file, one per line; blank lines and those that begin with # do not count.

    Raises ConfigError if it cannot be read or holds no key.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--api-key-file {file}: {why}") from error
    stripped = [line.strip() for line in lines]
    keys = [line for line in stripped if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {file} holds no key; write one per line")
    return tuple(check_key(key, f"--api-key-file {file}") for key in keys)


class ApiKeys:
    """The keys that open the server: `keys`, and those of `file`, which may change meanwhile.

    The file is looked at once a second at most. If it cannot be used, the keys that were read
    last stay, and the log says so. Raises ConfigError for a file that is unusable from the start.
    """

    def __init__(self, keys: Iterable[str], file: Path | None = None) -> None:
        self._own = _digests(keys)
        self._file = file
        self._of_file = () if file is None else _digests(read_keys(file))
        self._stamp = _stamp(file)
        self._looked = time.monotonic()

    def __bool__(self) -> bool:
        """Whether there is any; if not, everybody may call everything."""
        return bool(self._own or self._of_file)

    def allows(self, key: bytes) -> bool:
        """Whether `key` is one of them, in a time that does not depend on which or how nearly."""
        self._look_again()
        (given,) = _digests([key])
        matches = [hmac.compare_digest(given, known) for known in (*self._own, *self._of_file)]
        return any(matches)

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._of_file = _digests(read_keys(self._file))
        except ConfigError as error:
            log.warning("the API keys stay as they were: %s", error)
        else:
            log.info("the API keys were read again: the file holds %d", len(self._of_file))


def _digests(keys: Iterable[str | bytes]) -> tuple[bytes, ...]:
    """Of equal length, so that comparing them does not tell how long a key is."""
    raw = (key.encode() if isinstance(key, str) else key for key in keys)
    return tuple(hashlib.sha256(key).digest() for key in raw)


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does; None if it cannot be looked at."""
    try:
        found = file and file.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None
