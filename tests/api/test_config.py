"""`--config` and `infercore config show`: who wins, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = (sys.executable, "-m", "infercore_api.cli.main", "config", "show", "--origin")


def show(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHOW, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "infercore.toml"
    file.write_text(
        'port = 1\nmax-best-of = 1\nmax_total_tokens = 64\napi-key = "sesame"\nprefix-cache = false'
    )
    shown = show("--config", str(file), "--port", "3", PORT="2", MAX_BEST_OF="2")
    assert shown.returncode == 0, shown.stderr
    lines = {line.split()[0]: line.split(None, 1)[1] for line in shown.stdout.splitlines()}
    assert lines["port"] == "3  # flag"
    assert lines["max-best-of"] == "2  # environment: MAX_BEST_OF"
    assert lines["max-total-tokens"] == f"64  # file: {file}"
    assert lines["prefix-cache"] == f"false  # file: {file}"
    assert lines["api-key"] == f"(hidden)  # file: {file}"
    assert lines["dtype"] == '"auto"  # default'
    assert "sesame" not in shown.stdout + shown.stderr


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "infercore.toml"
    file.write_text("port = 7")
    shown = show(INFERCORE_CONFIG=str(file))
    assert f"7  # file: {file}" in shown.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("port = ", "is no TOML"),
        ("prt = 1", "there is no option 'prt'. Did you mean 'port'?"),
        ('port = "x"', "'port' takes a value of type int. Given: 'x'"),
        ("port = true", "'port' takes a value of type int. Given: True"),
        ("json-output = 1", "'json-output' takes a value of type bool. Given: 1"),
        ("api-key = [1]", "'api-key' takes a list of strings. Given: [1]"),
        ("port = 1\n[port.x]", "is no TOML"),
        ("max-best-of = 1\nmax_best_of = 2", "'max_best_of' is given twice, with - and with _"),
        ("port = 99999", "--port must be below 65536. Given: 99999"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(
    tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "infercore.toml"
    file.write_text(content)
    shown = show("--config", str(file))
    assert shown.returncode == 2
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    shown = show("--config", str(tmp_path / "none.toml"))
    assert (shown.returncode, "none.toml: No such file" in shown.stderr) == (2, True)
