"""GPTQ and AWQ over a model's own layers: the sums they go by, and that they beat rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infercore.errors import CheckpointError, ConfigError
from infercore.kinds import IntGrouped
from infercore.launch import quiet
from infercore_quantization.produce import folding
from infercore_quantization.produce.awq import output_error, search_clip, search_scales
from infercore_quantization.produce.block import Block, Moments, embed
from infercore_quantization.produce.gptq import Search, gptq
from infercore_quantization.produce.opening import Opened, open_model
from infercore_quantization.produce.overlay import dense
from infercore_quantization.produce.rounding import Scheme, grouped, nearest, whole_range
from infercore_quantization.produce.run import UNFINISHED, quantize
from infercore_quantization.produce.settings import Settings
from tiny_models import VOCAB, make_tiny

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (6, 48))
SEARCHES = [Search(), Search(act_order=False, static_groups=False), Search(static_groups=False)]


def correlated(n: int = 32, k: int = 64, tokens: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """W [N, K], and inputs [T, K] some of which are much larger than others."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(k, k, generator=generator) * torch.logspace(-1, 1, k)
    x = torch.randn(tokens, k, generator=generator) @ mixing
    return torch.randn(n, k, generator=generator), x


def error_of(kind: IntGrouped, weight: torch.Tensor, second: torch.Tensor) -> float:
    return output_error(torch.from_numpy(kind.dequantize()) - weight, second)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_errs_less_than_rounding(bits: int, search: Search, symmetric: bool) -> None:
    weight, x = correlated()
    second = x.T @ x / len(x)
    for size in (16, None):
        scheme = Scheme(bits, size, symmetric, least_zero=1)
        kind = gptq(weight, second, scheme, search)
        assert error_of(kind, weight, second) < error_of(nearest(weight, scheme), weight, second)
        groups = kind.group_of_row.tolist()
        assert np.bincount(groups).tolist() == [size or 64] * (64 // (size or 64))
        assert (groups == sorted(groups)) == (
            search.static_groups or not search.act_order or not size
        )


def test_gptq_without_correlation_rounds_to_the_nearest() -> None:
    """Where H is diagonal nothing can be made up for, so each weight gets its nearest code."""
    weight, _ = correlated()
    scheme = Scheme(4, None, symmetric=False)
    kind = gptq(weight, torch.eye(64), scheme, Search())
    scales = kind.scales.dequantize()[kind.group_of_row].T
    inside = (kind.values() > 0) & (kind.values() < 15)
    change = np.abs(kind.dequantize() - weight.numpy())
    assert (change <= 0.501 * scales)[inside].all()


def test_gptq_takes_inputs_that_are_always_zero_and_refuses_nonsense() -> None:
    weight, x = correlated()
    x[:, 5] = 0
    kind = gptq(weight, x.T @ x, Scheme(4, 16, symmetric=True), Search())
    assert not kind.dequantize()[:, 5].any()
    with pytest.raises(CheckpointError, match="have no inverse"):
        gptq(weight, torch.full((64, 64), torch.nan), Scheme(4, 16, symmetric=True), Search())


def test_awqs_scales_and_clipping_each_lower_the_error() -> None:
    weight, x = correlated()
    second, scheme = x.T @ x / len(x), Scheme(4, 16, symmetric=False)
    groups = grouped(weight, scheme)
    plain = output_error(whole_range(groups, scheme).rounded(groups).flatten(1) - weight, second)
    s = search_scales(weight, x.abs().mean(0), second, scheme)
    scaled = grouped(weight * s, scheme)
    rounded = whole_range(scaled, scheme).rounded(scaled).flatten(1) / s
    assert output_error(rounded - weight, second) < 0.9 * plain
    group = torch.arange(64) // 16
    blocks = second * (group[:, None] == group)
    clipped = search_clip(weight, second, scheme).rounded(groups).flatten(1)
    unclipped = whole_range(groups, scheme).rounded(groups).flatten(1)
    assert output_error(clipped - weight, blocks) < output_error(unclipped - weight, blocks)


def test_moments_are_means_over_all_tokens() -> None:
    _, x = correlated()
    moments = Moments.empty(64)
    for part in (x[:1], x[1:101], x[101:]):
        moments.add(part)
    torch.testing.assert_close(moments.second, x.T @ x / len(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moments.magnitude, x.abs().mean(0))


def opened(path: Path, family: str) -> tuple[Opened, Any]:
    oracle = make_tiny(path, family)
    return open_model(str(path)), oracle


def incoming(model: Opened) -> torch.Tensor:
    hidden = torch.empty(*WINDOWS.shape, model.spec.hidden_size)
    embed(model.spec, model.weights, WINDOWS, hidden)
    return hidden


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma2", "qwen2", "qwen3"])
@torch.inference_mode()
def test_a_block_computes_what_transformers_does(tmp_path: Path, family: str) -> None:
    model, oracle = opened(tmp_path, family)
    hidden = incoming(model)
    wanted = oracle(torch.from_numpy(WINDOWS), output_hidden_states=True).hidden_states
    for index in range(len(model.spec.layers) - 1):  # transformers normalizes the last one
        torch.testing.assert_close(hidden, wanted[index], rtol=1e-4, atol=1e-4)
        Block(model.spec, index, model.weights, WINDOWS.shape[1], lambda: None).forward(hidden)
    torch.testing.assert_close(hidden, wanted[-2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2"])
@torch.inference_mode()
def test_folded_scales_change_nothing(tmp_path: Path, family: str) -> None:
    model, _ = opened(tmp_path, family)
    hidden = incoming(model)
    block = Block(model.spec, 0, model.weights, WINDOWS.shape[1], lambda: None)
    after = hidden.clone()
    block.forward(after)
    matrices = {
        spec.name: block.weights.matrix(spec.name) for stage in block.stages for spec in stage.specs
    }
    generator = torch.Generator().manual_seed(0)
    folded = []
    for stage in block.stages:
        if not folding.shares(block.spec, stage):
            continue
        s = torch.rand(stage.in_features, generator=generator) + 0.5
        s = folding.shared_magnitude(block.spec, stage, s)
        at = Moments.empty(stage.in_features)
        folding.fold(block.spec, stage, s, block.weights, matrices, at)
        folded.append(stage.name)
    whole = ["qkv", "out", "inputs", "down"]
    assert folded == (["qkv", "inputs"] if family == "gpt2" else whole)
    block.weights.put_kinds({name: dense(w, "float32") for name, w in matrices.items()})
    block.reload()
    block.forward(hidden)
    torch.testing.assert_close(hidden, after, rtol=1e-4, atol=1e-4)


CASES = [("llama", "gptq"), ("gpt2", "gptq"), ("gemma2", "awq")]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_run_that_was_stopped_ends_with_the_same_files(
    tmp_path: Path, family: str, method: str
) -> None:
    model, _ = opened(tmp_path / "original", family)
    settings = Settings.of(method, group_size=16)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    errors = quantize(model, settings, whole, WINDOWS, quiet)
    assert len(errors) == len(model.spec.layers)

    def stop(phase: str, done: int, total: int) -> None:
        if phase.startswith("layer 2") and done % 7 == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, settings, resumed, WINDOWS, stop)
    assert not (resumed / "config.json").exists()
    first = next(resumed.glob("model-00001-*")).stat().st_mtime_ns
    with pytest.raises(ConfigError, match="unfinished run with another settings"):
        quantize(model, Settings.of(method, group_size=8), resumed, WINDOWS, quiet)
    with pytest.raises(ConfigError, match="unfinished run with another calibration"):
        quantize(model, settings, resumed, WINDOWS[1:], quiet)
    assert quantize(model, settings, resumed, WINDOWS, quiet) == errors
    assert next(resumed.glob("model-00001-*")).stat().st_mtime_ns == first
    assert not (resumed / UNFINISHED).exists()
    contents = [{f.name: f.read_bytes() for f in d.iterdir()} for d in (whole, resumed)]
    assert contents[0] == contents[1]
