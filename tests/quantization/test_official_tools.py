"""What `quantize` writes is loaded by each format's own package, which then says the same.

The packages pin versions that the server must not have, so they live in an environment of their
own: INFERCORE_QUANT_TOOLS names its Python, and `make quant-tools` makes one.
"""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from infercore.hub import demo_path
from infercore.launch import quiet
from infercore.text.tokenizer import Tokenizer
from infercore_quantization.produce.opening import open_model
from infercore_quantization.produce.run import quantize
from infercore_quantization.produce.settings import Settings
from infercore_quantization.produce.windows import read_tokens, spread
from reference_logits import logits, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PYTHON = "INFERCORE_QUANT_TOOLS"
SCRIPT = Path(__file__).parent / "official_greedy.py"
TOKENS = 32
NEAR = 0.1  # the packages compute in 16 bits, so that nearer scores may change places
TEXTS = ("The sky is", "A small robot named Ali", "Question: what is a token?")
WRITTEN: dict[str, dict[str, Any]] = {
    "gptq, 4 bits": {"method": "gptq"},
    "gptq, groups of 32": {"method": "gptq", "group_size": 32},
    "gptq, desc_act": {"method": "gptq", "static_groups": False},
    "gptq, 8 bits": {"method": "gptq", "bits": 8},
    "awq": {"method": "awq"},
    "int4": {"method": "int4"},
    "int8": {"method": "int8"},
    "nf4": {"method": "nf4"},
    "fp4": {"method": "fp4"},
}


def tools() -> str:
    """The Python of the environment that has the packages; skips the test where there is none."""
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"{PYTHON} names no Python with the formats' own packages")
    return python


@cache
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer(demo_path())
    return [list(tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]


def write(output: Path, options: dict[str, Any]) -> None:
    calibrated = options["method"] in ("gptq", "awq")
    short: dict[str, Any] = {"windows": 4, "window": 512} if calibrated else {}
    settings = Settings.of(**options, **short)
    pieces = None
    if settings.calibrated:
        tokens = read_tokens(demo_path() / "heldout.txt", demo_path())
        pieces = spread(tokens, settings.window, settings.windows)
    quantize(open_model("infercore/demo"), settings, output, pieces, quiet)


def official(folder: Path) -> tuple[str, list[list[int]]]:
    """(the class of the package's own layer, the greedy tokens of each prompt)."""
    done = subprocess.run(
        [tools(), str(SCRIPT), str(folder), str(TOKENS)],
        input=json.dumps(prompts()),
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GPTQMODEL_CPU_WORKERS": "2",  # fewer make its pool fail on two cores
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["layer"], answer["tokens"]


@pytest.mark.parametrize("name", WRITTEN)
def test_its_own_package_continues_as_we_do(tmp_path: Path, name: str) -> None:
    tools()
    output = tmp_path / "quantized"
    write(output, WRITTEN[name])
    layer, continued = official(output)
    assert layer != "Linear", "the package left the layers as they were"
    opened = open_model(str(output))
    runner = run(opened.spec, opened.weights)
    for ids, theirs in zip(prompts(), continued, strict=True):
        require_agreement(logits(runner, ids + theirs[:-1])[len(ids) - 1 :], theirs)


def require_agreement(scores: torch.Tensor, theirs: list[int]) -> None:
    """scores float32 [T, V] after the same tokens: theirs are the largest until two are near."""
    for row, token in zip(scores, theirs, strict=True):
        first, second = row.topk(2).values.tolist()
        if int(row.argmax()) != token:
            assert first - second <= NEAR, f"{token} scores {row[token]}, ours {first}, {second}"
            return
