"""The three processes from outside: what is killed comes back, or takes everything with it."""

import json
import signal
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any

import psutil
import pytest

from infercore.child import ExitCode
from processes import QUICK, Server, alive, eventually, serving, starting

GREEDY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


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


def loads(process: psutil.Process, library: str) -> bool:
    """Whether a shared library of that name is mapped into the process."""
    return any(library in mapped.path for mapped in process.memory_maps())


def test_a_killed_engine_comes_back_and_its_requests_get_an_error(folder: Path) -> None:
    """With the real engine; each process holds only what it needs, and the banner is told."""
    with serving(folder, *QUICK) as server:
        router, engine = server.router, server.engine
        supervisor = psutil.Process(server.process.pid)
        held = {p: [loads(p, "libtorch"), loads(p, "cygrpc")] for p in (supervisor, router, engine)}
        assert held == {supervisor: [False, False], router: [False, True], engine: [True, True]}
        listening = {
            connection.laddr.port
            for process in server.family()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {server.port}
        banner = server.log.read_text()
        told = ("infercore/demo", "float32", "cpu: ", "weights", "512 tokens at most", server.url)
        assert all(words in banner for words in told)

        before = server.post("/generate", GREEDY)
        stream = long_stream(server)
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
        eventually(lambda: server.metric("infercore_kv_usage_ratio") == 0, 10, "KV is free")
        assert server.end() == 0


def test_a_killed_router_comes_back_and_the_engine_forgets_its_requests(folder: Path) -> None:
    with serving(folder, toy=True) as server:
        server.post("/v1/chat/completions", CHAT)
        stream, router, engine = long_stream(server), server.router, server.engine
        family = [router, *router.children(recursive=True)]
        assert len(family) > 1, "templates are rendered in a process of their own"
        router.send_signal(signal.SIGKILL)
        stream.close()
        eventually(lambda: gone(family), 5, "the router is dead, and its children with it")
        server.wait_ready()
        assert server.engine.pid == engine.pid, "the engine outlives its router"
        eventually(
            lambda: server.metric("infercore_running_sequences") == 0, 10, "the engine is idle"
        )
        server.post("/generate", GREEDY)
        assert server.end() == 0


def test_a_killed_supervisor_takes_everyone_along_and_the_next_start_cleans_up(
    folder: Path,
) -> None:
    with serving(folder, toy=True) as server:
        server.post("/v1/chat/completions", CHAT)
        stream, family = long_stream(server), server.family()
        assert len(family) >= 4
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(5)
        eventually(lambda: gone(family), 5, "no orphan is left")
        stream.close()
    (left,) = server.runtime.iterdir()
    assert left.stat().st_mode & 0o777 == 0o700
    with serving(folder, toy=True) as server:
        (own,) = server.runtime.iterdir()
        assert own != left, "what the dead one left is swept"
        assert server.end() == 0
    assert not list(server.runtime.iterdir())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_start_can_be_ended_while_it_loads(folder: Path, signum: signal.Signals) -> None:
    with starting(folder, toy=True, env={"TOY_FAULT": "stall"}) as server:
        eventually(lambda: "load: 1 of 2" in server.log.read_text(), 30, "the engine loads")
        family = server.family()
        assert len(family) >= 3
        server.process.send_signal(signum)
        assert server.process.wait(10) == (-signum if signum == signal.SIGKILL else 0)
        eventually(lambda: gone(family), 5, "no orphan is left")
        assert bool(list(server.runtime.iterdir())) == (signum == signal.SIGKILL)


def test_sigterm_lets_live_streams_finish(folder: Path) -> None:
    with serving(folder, "--json-output", toy=True) as server:
        stream, family = long_stream(server, 150), server.family()
        server.process.send_signal(signal.SIGTERM)
        read: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: read.extend(events(stream)))
        reader.start()
        eventually(lambda: server.health() != 200, 5, "a draining server is not ready")
        reader.join(60)
        assert len(read) == 149
        assert read[-1]["generated_text"] is not None
        assert server.process.wait(20) == 0
        assert gone(family)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        (ready,) = (line for line in lines if "url" in line)
        assert (ready["url"], ready["engine"]["backend"]) == (server.url, "numpy")
        assert {line["process"] for line in lines} >= {"supervisor", "router"}


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    with serving(folder, toy=True) as server:
        stream, family = long_stream(server, 1000), server.family()
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: server.health() != 200, 5, "it drains")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 128 + signal.SIGINT
        assert gone(family)
        stream.close()


def test_drain_is_cut_after_the_graceful_timeout(folder: Path) -> None:
    with serving(folder, "--graceful-termination-timeout", "0.5", toy=True) as server:
        stream = long_stream(server, 1000)
        assert server.end() == ExitCode.DRAIN_TIMEOUT
        assert events(stream)[-1]["error_type"] == "unavailable"


def test_an_engine_that_is_stopped_is_killed_and_comes_back(folder: Path) -> None:
    """Not so if it is the supervisor that was stopped, as Ctrl-Z does."""
    with serving(folder, "--step-timeout", "2", toy=True) as server:
        engine = server.engine
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        assert "no sign of life" not in server.log.read_text()
        assert alive(engine)
        engine.send_signal(signal.SIGSTOP)
        eventually(lambda: not alive(engine), 20, "the supervisor kills it")
        server.wait_ready()
        assert server.post("/generate", GREEDY)["generated_text"]
        assert "no sign of life" in server.log.read_text()
        assert server.end() == 0


def test_a_machine_that_was_paused_ends_nobody(folder: Path) -> None:
    """All processes stand still for longer than any watchdog waits, in the midst of a stream."""
    with serving(folder, "--step-timeout", "1", toy=True) as server:
        stream, family = long_stream(server, 150), server.family()
        for signum in (signal.SIGSTOP, signal.SIGCONT):
            for process in family:
                process.send_signal(signum)
            time.sleep(3)
        assert events(stream)[-1]["generated_text"] is not None
        assert all(alive(process) for process in family)
        assert server.end() == 0


def test_a_step_that_hangs_ends_its_engine_and_the_next_request_works(folder: Path) -> None:
    env = {"TOY_FAULT": "hang", "TOY_MARK": str(folder / "hung")}
    with serving(folder, "--step-timeout", "1", toy=True, env=env) as server:
        with pytest.raises(urllib.error.HTTPError) as failed:
            server.post("/generate", GREEDY)
        assert failed.value.code == 503
        failed.value.close()
        server.wait_ready()
        assert server.post("/generate", GREEDY)["generated_text"]
        log = server.log.read_text()
        assert "no step finished for" in log
        assert "in submit" in log, "the stacks name the step that hangs"
        assert "exit code 20, step timeout" in log
        assert server.end() == 0


def test_a_process_that_dies_again_and_again_ends_the_server(folder: Path) -> None:
    with starting(folder, toy=True, env={"TOY_FAULT": "die"}) as server:
        assert server.process.wait(60) == ExitCode.CRASH_LOOP
        log = server.log.read_text()
        assert log.count("starting it again") == 4
        assert "infercore: the engine died 5 times" in log
        assert "exit code 9" in log
        assert not list(server.runtime.iterdir())


def test_an_engine_that_refuses_to_start_ends_the_server_with_its_exit_code(
    folder: Path,
) -> None:
    with starting(folder, toy=True, env={"TOY_FAULT": "refuse"}) as server:
        assert server.process.wait(60) == 7
        log = server.log.read_text()
        assert log.endswith("infercore: the toy does not fit; buy another\n")
        assert "Traceback" not in log
        assert not list(server.runtime.iterdir())
