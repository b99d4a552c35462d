"""Small repositories for a loopback hub, and an environment that points to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from infercore.hub import ResolvedModel, resolve
from infercore.launch import quiet
from loopback_hub import LoopbackHub

REPO = "ant/small"
WEIGHTS = bytes(25_000_000)  # three of the pieces that the library reads
SETTINGS = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"model_max_length": 64}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "merges.txt": b"a b",
}
REFUSED = {
    "README.md": b"# small",
    "modeling_small.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04.",
    "pytorch_model.bin.index.json": b"{}",
    "training_args.bin": b"\x80\x04.",
    "original/params.json": b"{}",
    "onnx/model.safetensors": b"another",
    "requirements.txt": b"torch",
}


@contextmanager
def hub_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub that the environment points to, with an empty cache in tmp_path/home/hub."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # the library read these when it was imported
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    with LoopbackHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
    huggingface_hub.close_session()


def small(weights: bytes = b"weights") -> dict[str, bytes]:
    return {**SETTINGS, "model.safetensors": weights}


def sharded() -> dict[str, bytes]:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[1]}}
    return {
        **SETTINGS,
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: name.encode() for name in names},
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def find(model: str = REPO, revision: str | None = None) -> ResolvedModel:
    return resolve(model, revision, progress=quiet)


def blobs(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.rglob("blobs/*")]
