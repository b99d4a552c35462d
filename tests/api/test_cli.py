"""The command line: what it accepts, how it refuses, and what it writes down about itself."""

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
from infercore_api.cli.flags import FLAGS, TGI_ONLY
from infercore_api.cli.options import parse_size, serve_options
from infercore_api.cli.reference import flags_markdown
from processes import free_port

DOCS = Path(__file__).parents[2] / "docs"


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


def given(**values: Any) -> Any:
    """The options behind a few flags, all others at their defaults."""
    return serve_options({flag.key: flag.default for flag in FLAGS} | values)


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


def test_an_unknown_flag_suggests_the_nearest() -> None:
    code, message = refused("--max-total-token", "5")
    assert code == 2
    assert "--max-total-tokens" in message


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--model-id", "./nowhere"), 6, "nowhere"),
        (("--backend", "abacus"), 3, "no backend 'abacus' is installed; there are: cpu"),
        (("--dtype", "int3"), 2, "bfloat16, float32, float16"),
        (("--quantize", "gptq"), 5, "'gptq'"),
        (("--max-total-tokens", "99999"), 2, "made for 2048"),
        (("--max-total-tokens", "0"), 2, "max_model_len must be positive"),
        (("--memory-budget", "lots"), 2, "--memory-budget 'lots' is no size"),
        (("--memory-budget", "50M"), 7, "bytes a token"),
        (("--num-shard", "2"), 2, "--num-shard 2: an engine runs on one device"),
        (("--trust-remote-code",), 2, "never run"),
        (("--hostname", "no.such.host.invalid"), 2, "--hostname no.such.host.invalid"),
        (("--payload-limit", "0"), 2, "--payload-limit must be positive"),
        (("--port", "70000"), 2, "--port must be between 0 and 65535"),
    ],
)
def test_what_cannot_start_says_why_and_exits_with_its_code(
    flags: tuple[str, ...], code: int, says: str
) -> None:
    found, message = refused(*flags)
    assert says in message
    assert found == code
    assert len(message.strip().splitlines()[-1]) < 600


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


def test_values_go_where_the_table_says() -> None:
    options = given(
        model_id="m",
        max_total_tokens=100,
        max_batch_total_tokens=4096,
        memory_budget="1.5G",
        prefix_cache=False,
        max_best_of=7,
        api_key="k",
        port=5,
    )
    assert (options.engine.model, options.engine.max_model_len) == ("m", 100)
    assert (options.engine.kv_tokens, options.engine.memory_budget) == (4096, 3 * 2**29)
    assert options.engine.prefix_cache is False
    assert (options.router["max_best_of"], options.router["api_key"]) == (7, "k")
    assert options.router["model_names"] == ("m",)
    assert options.port == 5


def test_flags_without_a_function_are_never_dropped_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given(usage_stats="off", num_shard=1, sharded="false")
    assert "--usage-stats has no effect: no usage is collected" in caplog.text
    assert "--num-shard has no effect" in caplog.text


def test_sizes() -> None:
    sizes = {"17": 17, "4k": 4096, "512M": 2**29, "8GiB": 2**33, "1.5g": 3 * 2**29}
    assert {text: parse_size("--x", text) for text in sizes} == sizes


def test_every_field_of_a_flag_exists() -> None:
    """A flag whose value went nowhere would be an option that is ignored."""
    options = given()
    for flag in FLAGS:
        home, _, field = flag.field.partition(".")
        if flag.section == TGI_ONLY:
            assert flag.note
            continue
        if field == "hub_cache":
            continue
        holder: Any = {"engine": options.engine, "serve": options}.get(home)
        assert field in options.router if holder is None else hasattr(holder, field), flag.name


def test_the_reference_of_flags_is_generated_from_the_table() -> None:
    page = DOCS / "reference" / "serve.md"
    assert page.read_text() == flags_markdown(), (
        f"regenerate it: python -m infercore_api.cli.reference > {page.relative_to(DOCS.parent)}"
    )


@pytest.mark.parametrize("module", ["infercore_api.cli.main", "infercore_api.supervisor.serve"])
def test_the_supervisor_loads_neither_torch_nor_grpc(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'grpc', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
