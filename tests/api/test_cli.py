"""The command line as a process: what it tells, how it refuses, and what it does not load."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infercore.hub import demo_path
from plugin_packages import install, plugin
from processes import free_port


def infercore(
    *arguments: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "infercore_api.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "100", **(env or {})},
        check=False,
    )


def refused(*flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and message of a serve that must not start."""
    ended = infercore("serve", "--port", str(free_port()), *flags, env=env)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


def test_version_and_plugins() -> None:
    assert infercore("--version").stdout == "infercore 1.0.0\n"
    listed = json.loads(infercore("plugins", "list", "--json").stdout)
    by_name = {plugin["name"]: plugin for plugin in listed}
    cpu = by_name["backend.cpu"]
    assert (cpu["distribution"], cpu["contract"], cpu["available"]) == (
        "infercore-cpu",
        "1.0",
        True,
    )
    assert {"models.core", "quantization.core", "routes.tgi", "routes.openai"} <= by_name.keys()
    assert all(plugin["available"] for plugin in listed)
    table = infercore("plugins", "list").stdout
    assert re.search(r"backend\.cpu\s+infercore-cpu\s+1\.0\.0\s+1\.0\s+yes", table)


def test_commands_of_plugins_join_and_a_broken_one_stops_nothing(tmp_path: Path) -> None:
    adds = "@hookimpl\ndef register_commands(cli):\n    cli.command({!r})(lambda: print('beads'))"
    entries = {"commands.good": "acme_good", "commands.bad": "acme_bad", "commands.old": "acme_old"}
    modules = {
        "acme_good": plugin(adds.format("count")),
        "acme_bad": plugin(adds.format("serve")),
        "acme_old": plugin("raise OSError('no abacus')"),
    }
    install(tmp_path, "acme", entries, modules)
    env = {"PYTHONPATH": str(tmp_path)}
    counted = infercore("count", env=env)
    assert (counted.returncode, counted.stdout) == (0, "beads\n")
    assert "acme" in counted.stderr
    assert "no abacus" in counted.stderr
    assert "command serve is left out" in counted.stderr
    shown = infercore("--help", env=env).stdout
    assert all(re.search(rf"\b{name}\b", shown) for name in ("serve", "plugins", "bench", "count"))
    refusal = infercore("serve", "--port", "70000", env=env).stderr
    assert refusal == "infercore: --port must be below 65536. Given: 70000\n", "no plugin was asked"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(("serve", "--max-total-token", "5"), "--max-total-tokens"), (("serv",), "'serve'")],
)
def test_what_is_misspelt_suggests_the_nearest(words: tuple[str, ...], nearest: str) -> None:
    ended = infercore(*words)
    assert ended.returncode == 2
    assert nearest in ended.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--model-id", "./nowhere"), 6, "nowhere"),
        (("--backend", "abacus"), 3, "no backend 'abacus' is installed; there are: cpu"),
        (("--quantize", "gptq"), 5, "no matrix of the checkpoint is packed, as gptq"),
        (("--hostname", "no.such.host.invalid"), 2, "--hostname no.such.host.invalid"),
        pytest.param(("--memory-budget", "40M"), 7, "bytes a token", marks=pytest.mark.slow),
        pytest.param(("--dtype", "int3"), 2, "bfloat16, float32, float16", marks=pytest.mark.slow),
        pytest.param(("--max-total-tokens", "99999"), 2, "made for 2048", marks=pytest.mark.slow),
        pytest.param(
            ("--kv-cache-dtype", "fp8_e5m2"), 2, "'fp8_e5m2' is not one", marks=pytest.mark.slow
        ),
    ],
)
def test_what_cannot_start_says_why_and_exits_with_its_code(
    flags: tuple[str, ...], code: int, says: str
) -> None:
    found, message = refused(*flags)
    assert says in message
    assert found == code
    last = message.strip().splitlines()[-1]
    assert last.startswith("infercore: ")
    assert len(last) < 600


def test_a_traceback_is_shown_where_debugging_is_asked_for() -> None:
    ended = infercore("serve", "--port", "70000", env={"LOG_LEVEL": "debug"})
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr
    assert ended.stderr.endswith("infercore: --port must be below 65536. Given: 70000\n")


def test_a_port_in_use_is_named_before_anything_loads() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = infercore("serve", "--port", port)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr
    assert "--port" in ended.stderr
    assert "load" not in ended.stderr


def damaged(folder: Path, weights: bytes | None, **config: Any) -> Path:
    """A copy of the bundled model with other weights, or other settings."""
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((demo_path() / file).read_bytes())
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_models_that_cannot_be_served_are_refused(tmp_path: Path) -> None:
    code, message = refused("--model-id", str(damaged(tmp_path, None)))
    assert (code, "holds no *.safetensors file" in message) == (6, True)
    weights = (demo_path() / "model.safetensors").read_bytes()
    code, message = refused("--model-id", str(damaged(tmp_path, weights[: len(weights) // 2])))
    assert (code, "model.safetensors" in message) == (6, True)
    odd = damaged(tmp_path, weights, architectures=["OddForCausalLM"])
    code, message = refused("--model-id", str(odd))
    assert (code, "LlamaForCausalLM" in message) == (5, True)


def test_the_environment_is_read_and_the_command_line_wins() -> None:
    env = {"MODEL_ID": "./from-the-environment", "PORT": str(free_port())}
    assert "from-the-environment" in infercore("serve", env=env).stderr
    ended = infercore("serve", "--model-id", "./from-the-line", env=env)
    assert "from-the-line" in ended.stderr


def test_help_loads_neither_torch_nor_grpc_nor_a_plugin() -> None:
    code = (
        "import sys; from infercore_api.cli.main import build\n"
        "build()(['serve', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'grpc', 'numpy', 'pluggy', 'fastapi'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "--max-total-tokens" in found.stdout
