"""`infercore new-backend`: what it writes works at once, and the guide's commands are true."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from infercore.backend import Backend
from infercore.capabilities import Capabilities
from infercore.errors import ConfigError
from infercore_conformance import catalogue
from infercore_conformance.scaffold import FILES, write_backend
from pages import ROOT, blocks, code_spans, page
from plugin_packages import install
from processes import eventually, free_port

INFERCORE = Path(sys.executable).with_name("infercore")
ROOMS = ("core", "backends/cpu", "quantization", "api", "conformance")
GUIDE = "how-to/write-a-backend.md"
MOST_LINES, MOST_SYMBOLS = 150, 40
CORE_CHECKS = (
    *("probe.devices", "capabilities.legal", "load.dtype", "memory.adds_up"),
    *("step.result", "step.chunks", "kv.shared", "reset.forgets"),
)


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    return write_backend("acme", tmp_path / "acme-infercore")


def installed_in(folder: Path, site: Path) -> Path:
    """What pip would make of the written distribution, without waiting for it."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    sources = {
        str(file.relative_to(folder / "src").with_suffix("")): file.read_text()
        for file in (folder / "src").rglob("*.py")
    }
    modules = {
        name.removesuffix("/__init__").replace("/", "."): text for name, text in sources.items()
    }
    entry_points = project["entry-points"]["infercore.plugins"]
    install(site, project["name"], entry_points, modules, version=project["version"])
    return site


def test_it_passes_core_checks_at_once(acme: Path, tmp_path: Path) -> None:
    site = installed_in(acme, tmp_path / "site")
    picked = [word for name in CORE_CHECKS for word in ("--check", f"executor.{name}")]
    ended = subprocess.run(
        [INFERCORE, "conformance", "run", "--backend", "acme", "--quick", *picked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(rf"executor +core +{len(CORE_CHECKS)} passed\n", ended.stdout), ended.stdout


def test_it_is_short_and_complete(acme: Path) -> None:
    files = [file for file in acme.rglob("*") if file.is_file()]
    assert {str(file.relative_to(acme)) for file in files} == FILES.keys()
    assert sum(len(file.read_text().splitlines()) for file in files) < MOST_LINES
    workflow = yaml.safe_load((acme / ".github/workflows/conformance.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["conformance"]["steps"]]
    assert any("conformance run --backend acme" in command for command in commands)


def test_it_is_written_as_the_house_writes(acme: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (("check", "--config", ROOT / "pyproject.toml"), ("format", "--check")):
        ended = subprocess.run([ruff, *command, acme], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout


def test_another_name_is_everywhere(tmp_path: Path) -> None:
    folder = write_backend("my_chip2", tmp_path / "new")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-chip2-infercore"
    assert project["entry-points"]["infercore.plugins"] == {
        "backend.my_chip2": "my_chip2_infercore"
    }
    source = (folder / "src/my_chip2_infercore/backend.py").read_text()
    assert "class MyChip2Backend(Backend):" in source
    assert 'name: ClassVar[str] = "my_chip2"' in source
    for file in folder.rglob("*"):
        if file.is_file():
            assert "acme" not in file.read_text().lower()


@pytest.mark.parametrize(
    "name", ["", "Acme", "2fast", "a-b", "_a", "a_", "class", "é", "a b", "../a"]
)
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a backend: it takes a Python name"):
        write_backend(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backend cpu is installed already, by infercore-cpu"):
        write_backend("cpu", tmp_path / "new")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        write_backend("acme", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        write_backend("acme", tmp_path / "file" / "new")


def test_the_command_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infercore_api.cli.main import build

    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(build(), ["new-backend", "acme"])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "acme-infercore" / "pyproject.toml").is_file()
    assert "infercore conformance run --backend acme" in ended.stdout


def symbols(folder: Path) -> set[str]:
    """What the sources below `folder` import from core, as module.name."""
    nodes = [
        node for file in folder.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))
    ]
    return {
        f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "infercore"
        for alias in node.names
    } | {
        alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.partition(".")[0] == "infercore"
    }


def test_the_door_is_narrow(acme: Path) -> None:
    """How many names of core's a complete backend needs; `pytest -rP` shows the counts."""
    counts = {
        folder.name: len(symbols(folder))
        for folder in (acme, ROOT / "backends/cpu", ROOT / "backends/sim", ROOT / "examples/numpy")
    }
    for name, count in counts.items():
        print(f"{name}: {count} symbols of infercore imported")
    assert all(0 < count <= MOST_SYMBOLS for count in counts.values()), counts


def test_the_guide_shows_what_is_written(acme: Path) -> None:
    found = blocks(page(GUIDE))
    shown = {block.label: block.text for block in found if block.label}
    assert shown.pop("pyproject.toml") == (acme / "pyproject.toml").read_text()
    for label, text in shown.items():
        assert text == (acme / "src" / label).read_text()
    assert len(shown) == 2
    [workflow] = [block.text for block in found if block.language == "yaml"]
    assert workflow == (acme / ".github/workflows/conformance.yml").read_text()


def test_the_guide_leaves_out_no_call_and_no_capability() -> None:
    spans = code_spans(page(GUIDE))
    assert {field.name for field in fields(Capabilities)} <= spans
    calls = {span.partition("(")[0] for span in spans}
    assert {*Backend.__abstractmethods__, "configure", "capabilities", "compile"} <= calls
    ids = {entry.check.id for entry in catalogue.entries()}
    profiles = tuple(f"{name}." for name in catalogue.profile_names())
    for span in spans:
        if span.startswith(profiles):  # a check, or "http.streams.…" for those that begin so
            start = span.removesuffix("…")
            assert span in ids or (start != span and any(i.startswith(start) for i in ids)), span


def clean_environment(folder: Path) -> Path:
    """A new environment with wheels of ours, and what they need, but nothing editable.

    What they need is linked from where this runs, so that nothing is downloaded.
    """
    needed, dist = folder / "needed", folder / "wheels"
    needed.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        ours = entry.name.startswith(("core-", "infercore", "_editable_impl", "__editable__"))
        if not ours and entry.suffix != ".pth":
            (needed / entry.name).symlink_to(entry)
    build = [sys.executable, "-m", "build", "--quiet", "--wheel", "--no-isolation", "--outdir"]
    for room in ROOMS:
        command = [*build, str(dist), str(ROOT / room)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(f"{needed}\n")
    install_wheels = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install_wheels, *map(str, dist.glob("*.whl"))], check=True)
    return python


def guide_commands() -> Iterator[str]:
    for block in blocks(page(GUIDE)):
        if block.language == "sh":
            yield from block.text.splitlines()


class Shell:
    """Types the guide's commands, in their order, into a clean environment."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._folder = folder
        kept = {
            name: v for name, v in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))
        }
        path = f"{python.parent}{os.pathsep}{kept['PATH']}"
        self._env = {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(folder)}

    def type(self, command: str) -> None:
        if command.startswith("cd "):
            self._folder /= command.removeprefix("cd ")
        elif command.startswith("infercore serve"):
            self._serve(command)
        else:
            # without a network there is no other environment to build in
            command = command.replace("pip install", "python -m pip install --no-build-isolation")
            ended = subprocess.run(
                ["sh", "-c", command],
                capture_output=True,
                text=True,
                cwd=self._folder,
                env=self._env,
                check=False,
            )
            assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"

    def _serve(self, command: str) -> None:
        port = free_port()
        words = [*command.split(), "--port", str(port), "--max-total-tokens", "512"]
        with subprocess.Popen(words, cwd=self._folder, env=self._env) as server:
            try:
                eventually(lambda: _answers(port), 100, command)
            finally:
                server.terminate()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_guide_works_beside_wheels_only(tmp_path: Path) -> None:
    """The last ones build the new backend's wheel, and hold that against the contract."""
    python = clean_environment(tmp_path)
    shell = Shell(python, tmp_path)
    commands = list(guide_commands())
    assert len(commands) > 10
    for command in commands:
        shell.type(command)
    where = subprocess.run(
        [python, "-c", "import acme_infercore, infercore; print(acme_infercore, infercore)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    ).stdout
    assert where.count("site-packages") == 2, "both are wheels now, nothing editable"
