"""`eval perplexity`: transformers says the same, and the commands print it."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from infercore.config import EngineConfig
from infercore.errors import ConfigError
from infercore.hub import demo_path
from infercore.launch import quiet
from infercore_quantization.produce import command, eval_command
from infercore_quantization.produce.opening import open_model
from infercore_quantization.produce.perplexity import Scorer, evaluate
from infercore_quantization.produce.run import quantize
from infercore_quantization.produce.settings import Settings
from infercore_quantization.produce.windows import Int64, consecutive, read_tokens, spread
from tiny_models import VOCAB, make_tiny

CONFIG = EngineConfig("", dtype="float32", threads=1)
TEXT = (
    "The sea is wide and blue. A small boat goes out in the morning and comes back at night. " * 8
)


@torch.inference_mode()
def test_transformers_measures_the_same(tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        path = tmp_path / str(seed)
        oracle = make_tiny(path, "llama", seed=seed)
        models.append((Scorer(open_model(str(path)), CONFIG, 40), oracle))
    tokens = np.random.default_rng(0).integers(0, VOCAB, 100)
    windows = consecutive(tokens, 40)
    assert [len(window) for window in windows] == [40, 40, 20]
    (made, oracle), (other, reference) = models
    loss = kl = 0.0
    for window in windows:
        ids = torch.from_numpy(window)[None]
        mine, theirs = (
            torch.log_softmax(model(ids).logits[0, :-1], -1) for model in (oracle, reference)
        )
        loss -= mine.gather(1, ids[0, 1:, None]).sum().item()
        kl += torch.nn.functional.kl_div(mine, theirs, log_target=True, reduction="sum").item()
    scores = evaluate(made, windows, other, quiet)
    assert scores.tokens == 97
    assert scores.perplexity == pytest.approx(math.exp(loss / 97), rel=1e-4)
    assert scores.kl == pytest.approx(kl / 97, rel=1e-3)
    assert evaluate(made, windows, made, quiet).kl == pytest.approx(0, abs=1e-6)


def test_windows_are_whole_and_spread_over_the_text() -> None:
    tokens = np.arange(105)
    assert spread(tokens, 10, 3)[:, 0].tolist() == [0, 40, 90]  # halves go to the even one
    assert len(spread(tokens, 10, 50)) == 10
    with pytest.raises(ConfigError, match="has 105 tokens, and a window takes 200"):
        spread(tokens, 200, 1)
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_tokens(Path("absent.txt"), demo_path())


def invoke(*arguments: str) -> tuple[int, str]:
    cli = typer.Typer()
    cli.callback()(lambda: None)
    command.register_commands(cli)
    eval_command.register_commands(cli)
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.output


def test_the_commands_quantize_a_model_and_measure_it(tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    make_tiny(model, "llama", vocab_size=4096)
    shutil.copy(demo_path() / "tokenizer.json", model)
    text.write_text(TEXT, encoding="utf-8")
    output = str(tmp_path / "gptq")
    options = ("--method", "gptq", "--group-size", "16", "--output", output)
    status, said = invoke("quantize", str(model), *options)
    assert (status, "needs a text; give --calibration" in said) == (2, True)
    status, said = invoke(
        *("quantize", str(model), *options, "--no-act-order", "--damping", "0.05"),
        *("--calibration", str(text), "--window", "32", "--windows", "4", "--threads", "1"),
    )
    assert status == 0, said
    assert re.search(r"model\.layers\.1\.mlp\.down_proj +0\.0\d+\n", said)
    assert (tmp_path / "gptq" / "tokenizer.json").is_file()
    stated = json.loads((tmp_path / "gptq" / "config.json").read_text(encoding="utf-8"))
    wanted = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
    assert wanted.items() <= stated["quantization_config"].items()
    status, said = invoke(
        *("eval", "perplexity", output, "--text", str(text), "--against", str(model)),
        *("--window", "64", "--tokens", "128", "--dtype", "float32", "--threads", "1"),
    )
    assert status == 0, said
    assert re.search(r"perplexity [\d.]+\ntokens +126\nKL +0\.\d+ nats", said)
    status, said = invoke("eval", "perplexity", output, "--text", str(text), "--window", "9999")
    assert (status, "is more than the 512 tokens" in said) == (2, True)


HELDOUT = Path(__file__).parents[3] / "shared" / "models" / "demo" / "heldout.txt"


def heldout() -> tuple[Int64, Int64]:
    """(tokens to measure on, those left to calibrate with) of the bundled model's own text."""
    if not HELDOUT.is_file():
        pytest.skip(f"no held-out text at {HELDOUT}, which is not part of the project")
    tokens = read_tokens(HELDOUT, demo_path())
    return tokens[:20_000], tokens[20_000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bundled_models_perplexity_is_that_of_its_card() -> None:
    made = Scorer(open_model("infercore/demo"), CONFIG, 512)
    scores = evaluate(made, consecutive(heldout()[0], 512), None, quiet)
    assert scores.perplexity == pytest.approx(3.56, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("method", "symmetric"), [("gptq", True), ("awq", False)])
def test_calibrated_methods_stay_closer_than_rounding(
    tmp_path: Path, method: str, symmetric: bool
) -> None:
    measured, left = heldout()
    original, pieces = open_model("infercore/demo"), spread(left, 512, 128)
    runs = {
        method: (Settings.of(method), pieces),
        "int4": (Settings.of("int4", symmetric=symmetric), None),
    }
    distances = {}
    for name, (settings, calibration) in runs.items():
        quantize(original, settings, tmp_path / name, calibration, quiet)
        made = Scorer(open_model(str(tmp_path / name)), CONFIG, 512)
        windows = consecutive(measured[:10_240], 512)
        scores = evaluate(made, windows, Scorer(original, CONFIG, 512), quiet)
        assert scores.kl is not None
        distances[name] = scores.kl
    assert distances[method] < distances["int4"]
