"""One real server on the bundled model, for the clients of every environment."""

from collections.abc import Iterator

import pytest

from processes import Server, free_port, serving


@pytest.fixture(scope="session")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, grpc_port: int) -> Iterator[Server]:
    """float32 on one thread, so that greedy answers are the same in any company."""
    flags = ("--dtype", "float32", "--max-total-tokens", "600", "--max-best-of", "4")
    with serving(
        tmp_path_factory.mktemp("server"), *flags, "--grpc-port", str(grpc_port)
    ) as running:
        pids = (running.engine.pid, running.router.pid)
        yield running
        assert (running.engine.pid, running.router.pid) == pids
        assert running.end() == 0
        assert "Traceback" not in running.log.read_text()
