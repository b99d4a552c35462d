"""Links: how router and engine reach each other, and how either knows the other.

On one machine they meet at a Unix socket in a directory that only their user can open. Over TCP
the router shows a secret that both have in a file, and beyond loopback the link is encrypted.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from infercore.errors import ConfigError

_KEY = "x-infercore-secret"
_SHORTEST_SECRET = 16


@dataclass(frozen=True, slots=True)
class Link:
    """The router's end.

    address: "unix:PATH" or "HOST:PORT". secret: what the engine asks for, "" on a Unix socket.
    ca: certificates (PEM) that the engine's must be signed by; "" = the link is not encrypted.
    """

    address: str
    secret: str = field(default="", repr=False)
    ca: str = field(default="", repr=False)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every stream begins with."""
        return ((_KEY, self.secret),) if self.secret else ()


@dataclass(frozen=True, slots=True)
class Listener:
    """The engine's end.

    address: "unix:PATH" or "HOST:PORT". secret: what a router must show, "" on a Unix socket.
    certificate, key: PEM; "" = the link is not encrypted.
    """

    address: str
    secret: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def admits(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether a stream that begins so may go on. Compares in constant time."""
        if not self.secret:
            return True
        shown = [value for name, value in metadata or () if name == _KEY]
        return len(shown) == 1 and hmac.compare_digest(_bytes(shown[0]), self.secret.encode())


def tcp_link(address: str, secret_file: Path | None, ca_file: Path | None) -> Link:
    """A link to an engine elsewhere. Raises ConfigError where it would not be safe."""
    require_address("--engine", address)
    secret = read_secret("--engine-secret-file", secret_file)
    if ca_file is None and not is_loopback(address):
        raise ConfigError(
            f"--engine {address} lies beyond this machine, so the link must be encrypted: give "
            "--engine-ca-file, the certificate of the engine or of its authority"
        )
    ca = "" if ca_file is None else _read("--engine-ca-file", ca_file)
    return Link(address, secret, ca)


def tcp_listener(
    address: str, secret_file: Path | None, certificate_file: Path | None, key_file: Path | None
) -> Listener:
    """Where an engine is found over TCP. Raises ConfigError where that would not be safe."""
    require_address("--listen", address)
    secret = read_secret("--secret-file", secret_file)
    if (certificate_file is None) != (key_file is None):
        raise ConfigError("--tls-certificate-file and --tls-key-file belong together; give both")
    if certificate_file is None or key_file is None:
        if not is_loopback(address):
            raise ConfigError(
                f"--listen {address} can be reached from other machines, so the link must be "
                "encrypted: give --tls-certificate-file and --tls-key-file"
            )
        return Listener(address, secret)
    certificate = _read("--tls-certificate-file", certificate_file)
    return Listener(address, secret, certificate, _read("--tls-key-file", key_file))


def require_address(flag: str, address: str) -> None:
    """Raises ConfigError unless it is HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not int(port) < 2**16:
        raise ConfigError(f"{flag} {address!r} is no HOST:PORT, such as 127.0.0.1:3001")


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_secret(flag: str, file: Path | None) -> str:
    """The secret in a file. Raises ConfigError for one that is missing, short or not ASCII."""
    if file is None:
        raise ConfigError(
            f"{flag}: whoever reaches a TCP address could use the engine, so both ends need the "
            "same secret in a file"
        )
    secret = _read(flag, file).strip()
    if len(secret) < _SHORTEST_SECRET or not secret.isascii() or not secret.isprintable():
        raise ConfigError(
            f"{flag} {file}: the secret must have at least {_SHORTEST_SECRET} printable ASCII "
            "characters; `openssl rand -hex 32` makes one"
        )
    return secret


def _read(flag: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {file} is no UTF-8 text") from error


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
