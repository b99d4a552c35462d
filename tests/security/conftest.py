"""A router over an engine in memory, and a whole server on the toy engine, for all statements."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server, free_port, serving

SAID = [260, 553]  # " a", " time"
READ_SECONDS = 1.0  # that a request has to arrive at the server below
TOTAL = 4096


@pytest.fixture(scope="session")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.fixture(scope="session")
def _answering(texts: tuple[Tokenizer, ChatTemplate]) -> Router:
    return Router(texts, MemoryEngine(SAID))


@pytest.fixture
def router(_answering: Router) -> Router:
    """Answers " a time" to everything. Made once; its engine has forgotten what came before."""
    _answering.engine.requests.clear()
    return _answering


@pytest.fixture
def locked(texts: tuple[Tokenizer, ChatTemplate]) -> Router:
    """The same, with a key."""
    return Router(texts, MemoryEngine(SAID), api_keys=("Key",))


@pytest.fixture(scope="session")
def toy() -> Iterator[Server]:
    """A server whose tokens mean nothing; after all that was done to it, it ends well."""
    with tempfile.TemporaryDirectory(prefix="ic-") as folder:
        flags = ("--max-total-tokens", str(TOTAL), "--read-timeout", str(READ_SECONDS),
                 "--grpc-port", str(free_port()))  # fmt: skip
        with serving(Path(folder), *flags, toy=True) as server:
            pids = server.engine.pid, server.router.pid
            yield server
            assert (server.engine.pid, server.router.pid) == pids
            assert server.end() == 0
            text = server.log.read_text()
            assert "Traceback" not in text, text[text.find("Traceback") - 300 :]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a server's sockets."""
    with tempfile.TemporaryDirectory(prefix="ic-") as path:
        yield Path(path)
