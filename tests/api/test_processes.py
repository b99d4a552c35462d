"""The three processes from outside: what is killed comes back, or takes everything with it."""

import json
import signal
import threading
import urllib.error
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import QUICK, Server, alive, eventually, serving

GREEDY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}}


def long_stream(server: Server, tokens: int = 400) -> Any:
    """A stream of so many tokens, its first event read."""
    body = {"inputs": "Once upon", "parameters": {"max_new_tokens": tokens, "do_sample": True}}
    response = server.open("/generate_stream", body)
    assert response.readline().startswith(b"data:")
    return response


def events(response: Any) -> list[dict[str, Any]]:
    """All events that are left of a stream."""
    lines = (line for line in response if line.startswith(b"data:"))
    return [json.loads(line[5:]) for line in lines]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(alive(process) for process in processes)


def test_a_killed_engine_comes_back_and_its_requests_get_an_error(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        before = server.post("/generate", GREEDY)
        stream, engine = long_stream(server), server.engine
        engine.send_signal(signal.SIGKILL)
        last = events(stream)[-1]
        assert last["error_type"] == "unavailable"
        assert "safe to retry" in last["error"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.post("/generate", GREEDY)
        assert refused.value.code == 503
        assert refused.value.headers["retry-after"]
        refused.value.close()
        server.wait_ready()
        assert server.engine.pid != engine.pid
        assert server.post("/generate", GREEDY) == before
        assert server.metric("infercore_kv_usage_ratio") == 0
        assert server.end() == 0


def test_a_killed_router_comes_back_and_the_engine_forgets_its_requests(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        stream, router, engine = long_stream(server), server.router, server.engine
        router.send_signal(signal.SIGKILL)
        stream.close()
        eventually(lambda: not alive(router), 5, "the router is dead")
        server.wait_ready()
        assert server.engine.pid == engine.pid, "the engine outlives its router"
        eventually(
            lambda: server.metric("infercore_running_sequences") == 0, 10, "the engine is idle"
        )
        server.post("/generate", GREEDY)
        assert server.end() == 0


def test_a_killed_supervisor_takes_everyone_along_and_the_next_start_cleans_up(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, *QUICK) as server:
        family = server.family()
        assert len(family) >= 3
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(5)
        eventually(lambda: gone(family), 20, "no orphan is left")
    (left,) = server.runtime.iterdir()
    assert left.stat().st_mode & 0o777 == 0o700
    with serving(tmp_path, *QUICK) as server:
        (own,) = server.runtime.iterdir()
        assert own != left, "what the dead one left is swept"
        assert server.end() == 0
    assert not list(server.runtime.iterdir())


def test_sigterm_lets_live_streams_finish(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        stream, family = long_stream(server, 150), server.family()
        server.process.send_signal(signal.SIGTERM)
        read: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: read.extend(events(stream)))
        reader.start()
        eventually(lambda: server.health() != 200, 5, "a draining server is not ready")
        reader.join(60)
        assert read[-1]["generated_text"] is not None
        assert server.process.wait(20) == 0
        assert gone(family)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        stream, family = long_stream(server), server.family()
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: server.health() != 200, 5, "it drains")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 128 + signal.SIGINT
        assert gone(family)
        stream.close()


def test_an_engine_that_hangs_is_killed_and_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK, "--step-timeout", "2") as server:
        engine = server.engine
        engine.send_signal(signal.SIGSTOP)
        eventually(lambda: not alive(engine), 20, "the supervisor kills it")
        eventually(lambda: server.health() != 200, 5, "the router knows")
        server.wait_ready()
        assert server.post("/generate", GREEDY)["generated_text"]
        assert "no sign of life" in server.log.read_text()
        assert server.end() == 0


def test_drain_is_cut_after_the_graceful_timeout(tmp_path: Path) -> None:
    flags = ("--graceful-termination-timeout", "0.5")
    with serving(tmp_path, *QUICK, *flags) as server:
        stream = long_stream(server, 480)
        assert server.end() == 23
        assert events(stream)[-1]["error_type"] == "unavailable"


def test_only_unix_sockets_and_the_port_are_listened_on(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        listening = {
            connection.laddr.port
            for process in server.family()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {server.port}
        assert server.end() == 0
