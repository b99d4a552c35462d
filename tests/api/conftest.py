"""One real server on the bundled model, for all tests that only talk to it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from processes import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """float32 on one thread, so that greedy answers are the same in any company."""
    folder = tmp_path_factory.mktemp("server")
    flags = ("--dtype", "float32", "--max-total-tokens", "600", "--max-best-of", "4")
    with serving(folder, *flags) as running:
        yield running
        assert running.end() == 0
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    """A plain HTTP client of that server."""
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a server's sockets, as `tmp_path`'s may not be."""
    with tempfile.TemporaryDirectory(prefix="ic-") as path:
        yield Path(path)
