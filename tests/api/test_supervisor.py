"""The supervisor's parts: run directories and their sweep, a child's last words, signals early."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infercore.errors import ConfigError
from infercore_api.supervisor.child_process import ChildProcess, ChildSpec
from infercore_api.supervisor.console import size
from infercore_api.supervisor.run_directory import RunDirectory, sweep
from infercore_api.supervisor.serve import bind, url_of
from processes import starting


@contextmanager
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        try:
            yield process
        finally:
            process.kill()


def abandoned(base: Path, name: str, pid: int) -> Path:
    """A run directory as a supervisor leaves it that was killed: its lock is free."""
    directory = RunDirectory(base)
    directory.remember(name, pid)
    left = base / "infercore-run-left"
    left.mkdir(0o700)
    for file in directory.path.iterdir():
        (left / file.name).write_bytes(file.read_bytes())
    with directory:
        pass
    return left


def test_the_next_start_kills_what_a_dead_supervisor_left(tmp_path: Path) -> None:
    with sleeper() as child:
        left = abandoned(tmp_path, "engine", child.pid)
        assert sweep(tmp_path) == [child.pid]
        assert child.wait(10) == -signal.SIGKILL
        assert not left.exists()


def test_a_process_that_only_has_a_childs_id_is_not_killed(tmp_path: Path) -> None:
    with sleeper() as stranger:
        left = abandoned(tmp_path, "engine", stranger.pid)
        children = left / "children.json"
        (pid, birth) = json.loads(children.read_text())["engine"]
        children.write_text(json.dumps({"engine": [pid, str(int(birth) - 1)]}))
        assert sweep(tmp_path) == []
        assert not left.exists()
        assert stranger.poll() is None


def test_a_sweep_leaves_the_living_the_young_and_strangers_alone(tmp_path: Path) -> None:
    (tmp_path / "infercore-run-being-made").mkdir()
    (tmp_path / "infercore-run-file").touch()
    (tmp_path / "other").mkdir()
    with sleeper() as child, RunDirectory(tmp_path) as living:
        living.remember("engine", child.pid)
        assert sweep(tmp_path) == []
        assert living.path.stat().st_mode & 0o777 == 0o700
        assert child.poll() is None
        names = {path.name for path in tmp_path.iterdir()}
    assert names == {"infercore-run-being-made", "infercore-run-file", "other", living.path.name}
    assert not living.path.exists()


def test_a_sweep_removes_no_folder_of_somebody_elses(tmp_path: Path) -> None:
    """However old, and whatever its name: without our lock only an empty one can be ours."""
    folders = [tmp_path / "infercore-data", tmp_path / "infercore-run-data"]
    empty = tmp_path / "infercore-run-empty"
    for folder in (*folders, empty):
        folder.mkdir()
    for folder in folders:
        (folder / "precious").write_text("mine")
    for folder in (*folders, empty):
        os.utime(folder, (0, 0))
    assert sweep(tmp_path) == []
    assert all((folder / "precious").exists() for folder in folders)
    assert not empty.exists()


def test_no_directory_to_meet_in_is_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "deep/" * 30)
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="Set TMPDIR"):
        RunDirectory()


async def life(code: str) -> tuple[int, list[tuple[str, Any]], ChildProcess]:
    """Exit code and reports of a child that runs `code`, with its end of the pair as `line`."""
    folder = Path(os.environ["PYTHONPATH"])
    head = "import os, socket, sys; line = socket.socket(fileno=int(sys.argv[1]))\n"
    (folder / "short_life.py").write_text(head + code)
    child = await ChildProcess.start(ChildSpec("child", "short_life", {"a": 1}))
    heard: list[tuple[str, Any]] = []
    ended = await child.run(lambda report, told: heard.append((report, dict(told))))
    return ended, heard, child


async def test_a_child_that_dies_in_mid_report_is_a_death_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, heard, child = await life(
        'line.sendall(b\'{"report": "ready"}\\n{"report": "heartb\'); os.kill(os.getpid(), 9)'
    )
    assert (code, heard, child.ready) == (-signal.SIGKILL, [("ready", {})], True)
    code, heard, child = await life(
        'line.recv(99); line.sendall(b\'{"report": "refused", "exit_code": 3}\\n\'); sys.exit(3)'
    )
    assert (code, child.refusal) == (3, {"exit_code": 3})


async def test_a_child_learns_of_the_end_of_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "waits.py").write_text(
        "import sys, time; from infercore.child import Lifeline\n"
        "Lifeline(int(sys.argv[1])).report('ready'); time.sleep(600)"
    )
    child = await ChildProcess.start(ChildSpec("child", "waits", {}))
    ready = asyncio.Event()
    running = asyncio.create_task(child.run(lambda report, told: ready.set()))
    await asyncio.wait_for(ready.wait(), 30)
    running.cancel()  # closes our end of the pair
    assert await asyncio.wait_for(child.process.wait(), 10) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_download_can_be_ended(folder: Path, signum: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_hub:
        env = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent_hub.getsockname()[1]}",
            "HF_HUB_CACHE": str(folder / "cache"),
        }
        with starting(folder, "--model-id", "owner/name", toy=True, env=env) as server:
            silent_hub.settimeout(60)
            with silent_hub.accept()[0]:
                assert len(server.family()) == 1, "nothing is started before the model is there"
                server.process.send_signal(signum)
                assert server.process.wait(10) == 0
            assert not list(server.runtime.iterdir())


def test_an_address_is_had_or_refused_at_once() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}.*--port"):
            bind("127.0.0.1", port)
    with bind("0.0.0.0", 0) as every:
        assert url_of(every).startswith("http://127.0.0.1:")
    with pytest.raises(ConfigError, match="--hostname 192.0.2.1|cannot listen on 192.0.2.1"):
        bind("192.0.2.1", 0)


def test_a_terminal_is_left_clean_by_progress_and_told_by_lines_elsewhere() -> None:
    code = (
        "from infercore_api.supervisor.console import ServeConsole; import logging\n"
        "logging.basicConfig(level='INFO', format='%(message)s')\n"
        "with ServeConsole('http://u', 'limits', 'auth', json_output=False) as console:\n"
        "    for done in range(1, 100): console.progress('load', done, 99)\n"
        "    console.progress('warm up', 0, 2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "load: 1 of 99\nwarm up: 0 of 2\n"


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 21 * 2**20, 3 * 2**40)] == [
        *("0 B", "1023 B", "1.5 KiB", "21.0 MiB", "3.0 TiB")
    ]
