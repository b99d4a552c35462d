"""Real clients, each version in an environment of its own, against a real server.

The calls are in `calls/`, as scripts of their clients' users. What fits into the project's own
environment is tested in more depth in `tests/api`.
"""

import json
import subprocess
from pathlib import Path

import pytest

from client_environments import python_with
from processes import Server

CALLS = Path(__file__).parent / "calls"
CLIENTS = (
    ("hub_calls", "huggingface_hub==0.36.2", "aiohttp"),
    ("hub_calls", "huggingface_hub==1.33.0"),
    ("hub_calls", "huggingface_hub==2.4.0"),
    ("openai_calls", "openai==2.54.0"),
    ("openai_calls", "openai==3.54.0"),
    ("text_generation_calls", "text-generation==0.7.0"),
    ("anthropic_calls", "anthropic==2.12.0"),
    ("langchain_calls", "langchain-openai==1.7.3", "langchain-huggingface==1.2.3"),
    ("litellm_calls", "litellm==1.106.2"),
    (
        "llama_index_calls",
        "llama-index-llms-openai-like==0.8.1",
        "llama-index-llms-huggingface-api==0.8.0",
    ),
)
TRITON = "tritonclient[grpc,http]==2.73.0"
STORY = "Once upon a time"

# an environment that is new is downloaded
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(python: Path, *arguments: str) -> str:
    """What the program prints."""
    command = [str(python), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("calls", "requirements"), [(c[0], c[1:]) for c in CLIENTS], ids=[c[1] for c in CLIENTS]
)
def test_every_call_of_its_users(server: Server, calls: str, requirements: tuple[str, ...]) -> None:
    said = run(python_with(*requirements), str(CALLS / "run_calls.py"), calls, server.url)
    outcomes: dict[str, str] = dict(
        json.loads(line) for line in said.splitlines() if line.startswith('["')
    )
    failed = {name: error for name, error in outcomes.items() if error}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert len(outcomes) > 2


def test_tritons_client_gets_what_generate_gives(server: Server, grpc_port: int) -> None:
    script = Path(__file__).parents[1] / "support" / "triton_calls.py"
    said = run(
        python_with(TRITON), str(script), f"127.0.0.1:{server.port}", f"127.0.0.1:{grpc_port}"
    )
    over_http, over_grpc = json.loads(said)["http"], json.loads(said)["grpc"]
    body = {"inputs": STORY, "parameters": {"max_new_tokens": 12, "details": True}}
    answer = server.post("/generate", body)
    text = answer["generated_text"]
    for got in (over_http, over_grpc):
        assert all(got[name] for name in ("live", "ready", "model_ready", "version_ready"))
        assert (got["server"], got["model"]) == ("infercore", ["1"])
        assert got["text"] == [text]
    assert over_http["as_json"] == [text]
    assert [status for status, _ in over_http["refusals"]] == ["404", "404", "422", "422"]
    assert over_grpc["tokens"] == [token["text"] for token in answer["details"]["tokens"]]
    assert "`top_p`" in over_grpc["stream_error"]


def test_every_script_of_calls_is_run() -> None:
    there = {file.stem for file in CALLS.glob("*_calls.py")} - {"run_calls"}
    assert there == {calls for calls, *_ in CLIENTS}
