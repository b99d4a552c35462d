"""Engines over TCP: who is let in, what is encrypted, and what outlives a death."""

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest

import toy_engine_process
from infercore.config import EngineConfig
from infercore.engine.link import Link, Listener, tcp_link, tcp_listener
from infercore.engine.server import EngineServer
from infercore.errors import ConfigError
from infercore_api.router.engine_client import EnginePhase
from infercore_api.router.grpc_engine_client import GrpcEngineClient
from processes import Server, eventually, free_port

SECRET = "0123456789abcdef0123456789abcdef"


def secret_file(folder: Path, secret: str = SECRET) -> Path:
    file = folder / "secret"
    file.write_text(f"{secret}\n")
    return file


@asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[None]:
    """A toy's engine, in this process."""
    launch = partial(toy_engine_process.launch, EngineConfig("toy"))
    server = EngineServer(launch, 30.0, lambda *_, **__: None)
    serving = asyncio.create_task(server.serve(listener))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        signal.raise_signal(signal.SIGTERM)
        await serving


async def becomes_ready(link: Link, seconds: float) -> bool:
    client = GrpcEngineClient(link)
    await client.start()
    try:
        for _ in range(int(seconds / 0.05)):
            if client.state.phase is EnginePhase.READY:
                return True
            await asyncio.sleep(0.05)
        return False
    finally:
        await client.close()


async def test_a_router_without_the_secret_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with listening(tcp_listener(address, secret_file(tmp_path), None, None)):
        assert await becomes_ready(tcp_link(address, secret_file(tmp_path), None), 10)
        for shown in ("", SECRET[:-1], SECRET + "0"):
            assert not await becomes_ready(Link(address, shown), 0.5)
    assert "the secret is wrong or missing" in caplog.text
    assert "a stranger is refused: ipv4:127.0.0.1" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
async def test_a_link_is_encrypted_and_the_engine_is_known_by_its_certificate(
    tmp_path: Path,
) -> None:
    def certificate(name: str) -> tuple[Path, Path]:
        files = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost", "-out", files[0], "-keyout", files[1]],
            check=True, capture_output=True,
        )  # fmt: skip
        return files

    (ours, key), (another, _) = certificate("ours"), certificate("another")
    address, secret = f"localhost:{free_port()}", secret_file(tmp_path)
    async with listening(tcp_listener(address, secret, ours, key)):
        assert await becomes_ready(tcp_link(address, secret, ours), 10)
        assert not await becomes_ready(tcp_link(address, secret, another), 0.5)
        assert not await becomes_ready(tcp_link(address, secret, None), 0.5)


def test_a_server_comes_back_to_an_engine_that_was_started_again(folder: Path) -> None:
    address, secret = f"127.0.0.1:{free_port()}", secret_file(folder)
    command = [
        sys.executable, "-m", "infercore_api.cli.main", "engine", "--listen", address,
        "--secret-file", str(secret), "--threads", "1", "--max-total-tokens", "64",
    ]  # fmt: skip
    server = Server(
        *(folder, "--engine", address, "--engine-secret-file", str(secret)),
        env={"INFERCORE_THREADS": ""},  # the engine's, and refused beside --engine
    )
    body = {"inputs": "Once", "parameters": {"max_new_tokens": 4}}
    engines: list[subprocess.Popen[bytes]] = []
    try:
        for end in (signal.SIGKILL, signal.SIGTERM):
            with (folder / "engine.log").open("ab") as log:
                engines.append(engine := subprocess.Popen(command, stdout=log, stderr=log))
            eventually(lambda: status(server, "/health") == 200, 60, "the engine is found")
            reply = httpx2.post(f"{server.url}/generate", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            engine.send_signal(end)
            assert engine.wait(20) == (-end if end is signal.SIGKILL else 0)
            eventually(lambda: status(server, "/health") == 503, 10, "its end is seen")
        assert httpx2.post(f"{server.url}/generate", json=body).status_code == 503
    finally:
        for engine in engines:
            engine.kill()
        assert server.end() == 0
    assert "Traceback" not in server.log.read_text() + (folder / "engine.log").read_text()


def status(server: Server, path: str) -> int:
    try:
        return httpx2.get(f"{server.url}{path}").status_code
    except httpx2.TransportError:
        return 0


@pytest.mark.parametrize(
    ("address", "secret", "encrypted", "says"),
    [
        ("localhost", SECRET, False, "'localhost' is no HOST:PORT"),
        ("127.0.0.1:99999", SECRET, False, "is no HOST:PORT"),
        ("127.0.0.1:1", None, False, "both ends need the same secret in a file"),
        ("127.0.0.1:1", "short", False, "at least 16 printable ASCII characters"),
        ("127.0.0.1:1", "0123456789abcdeé", False, "at least 16 printable ASCII characters"),
        ("0.0.0.0:1", SECRET, False, "must be encrypted"),
        ("10.0.0.1:1", SECRET, False, "must be encrypted"),
        ("example.org:1", SECRET, False, "must be encrypted"),
        ("10.0.0.1:1", SECRET, True, "No such file"),
    ],
)
def test_a_link_that_would_not_be_safe_is_refused(
    tmp_path: Path, address: str, secret: str | None, encrypted: bool, says: str
) -> None:
    file = None if secret is None else secret_file(tmp_path, secret)
    pem = tmp_path / "none.pem" if encrypted else None
    with pytest.raises(ConfigError, match=says):
        tcp_link(address, file, pem)
    with pytest.raises(ConfigError, match=says):
        tcp_listener(address, file, pem, pem)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_loopback_needs_no_certificate(tmp_path: Path, address: str) -> None:
    assert tcp_link(address, secret_file(tmp_path), None) == Link(address, SECRET)


def test_secrets_are_not_shown() -> None:
    shown = repr((Link("a:1", SECRET, "pem"), Listener("a:1", SECRET, "pem", "private")))
    assert not any(word in shown for word in (SECRET, "pem", "private"))
