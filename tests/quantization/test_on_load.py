"""Quantizing while loading: equal to the tools that do the same, and never further than a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from infercore import LLM, SamplingParams
from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import FP4, NF4, Codebook4, Dense, Fp8, IntGrouped, Kind, to_float32
from infercore.quantization import QuantizationMethod
from infercore_quantization.bitsandbytes import Bitsandbytes
from infercore_quantization.fp8 import Fp8Format
from infercore_quantization.on_load import (
    Eetq,
    Fp4,
    Int4,
    Int8,
    Nf4,
    codebook4,
    fp8_rows,
    in_parts,
    int8_rows,
    int_groups,
    to_e4m3,
)
from infercore_quantization.reading import is_head
from reference_logits import checkpoint, logits, open_quantized, prompts, run
from tiny_models import make_tiny

Float32 = NDArray[np.float32]
METHODS: dict[type[QuantizationMethod], type[Kind]] = {
    Bitsandbytes: IntGrouped,
    Nf4: Codebook4,
    Fp4: Codebook4,
    Eetq: IntGrouped,
    Int8: IntGrouped,
    Int4: IntGrouped,
    Fp8Format: Fp8,
}
QUANTIZE: dict[type[QuantizationMethod], Callable[[Dense], Kind]] = {
    Bitsandbytes: int8_rows,
    Fp8Format: fp8_rows,
    **{method: method.quantize for method in (Nf4, Fp4, Eetq, Int8, Int4)},
}
EVEN = [(256, 512), (48, 80), (5, 64), (130, 96)]  # bitsandbytes has a slow path for odd rows
SHAPES = [*EVEN, (7, 33), (1, 1)]


def tagged(weight: torch.Tensor) -> Dense:
    dtype = str(weight.dtype).removeprefix("torch.")
    bits = weight.view(torch.uint16) if dtype == "bfloat16" else weight
    return Dense(bits.numpy(), dtype)


def random(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    weight = torch.randn(shape, generator=generator) * 0.05
    weight[0] = (weight[0] * 512).round() / 512  # many ties
    if shape[0] > 2:
        weight[1] = 0
    return weight.to(dtype)


# --- equal to the tools ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", EVEN, ids=str)
@pytest.mark.parametrize(("kind", "table"), [("nf4", NF4), ("fp4", FP4)])
def test_4_bit_weights_are_bitsandbytes_own(
    kind: str, table: Float32, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    reason = "bitsandbytes is not installed"
    functional: Any = pytest.importorskip("bitsandbytes.functional", reason=reason)
    weight = random(shape, dtype)
    packed, state = functional.quantize_4bit(weight, quant_type=kind, blocksize=64)
    state.dtype = torch.float32  # it would round to the weight's
    expected = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_array_equal(codebook4(tagged(weight), table).dequantize(), expected)


@pytest.mark.parametrize("shape", EVEN, ids=str)
def test_8_bit_codes_are_bitsandbytes_own(shape: tuple[int, int]) -> None:
    reason = "bitsandbytes is not installed"
    functional: Any = pytest.importorskip("bitsandbytes.functional", reason=reason)
    weight = random(shape, torch.float16)
    codes, absmax, _ = functional.int8_vectorwise_quant(weight)
    found = int8_rows(tagged(weight))
    some = absmax.numpy() > 0  # it divides by 0 where a row holds nothing else
    assert np.array_equal((found.codes ^ 128).view(np.int8)[some], codes.numpy()[some])
    np.testing.assert_allclose(found.scales.data[0], absmax.numpy() / 127, rtol=1e-6)
    assert not found.dequantize()[~some].any()


@pytest.mark.parametrize(("name", "method"), [("bnb-nf4", Nf4), ("bnb-int8", Bitsandbytes)])
def test_codes_are_those_that_the_tool_stored(name: str, method: type[QuantizationMethod]) -> None:
    """The tool made its files from the plain one; its 4-bit scales it quantized once more."""
    spec, weights = open_quantized(checkpoint("base"), method, plain=True)
    _, stored = open_quantized(checkpoint(name), Bitsandbytes)
    for linear in spec.linears():
        found, expected = weights.linear(linear.name), stored.linear(linear.name)
        if is_head(linear):
            continue
        assert isinstance(found, Codebook4 | IntGrouped)
        assert isinstance(expected, Codebook4 | IntGrouped)
        np.testing.assert_array_equal(found.codes, expected.codes)
        step = 0.01 if method is Nf4 else 1e-6
        by_tool = expected.scales.dequantize()
        np.testing.assert_allclose(found.scales.dequantize(), by_tool, atol=step * by_tool.max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("table", [NF4, FP4], ids=["nf4", "fp4"])
def test_4_bit_weights_are_the_nearest_of_the_table(shape: tuple[int, int], table: Float32) -> None:
    """Searched one by one, in blocks that run through the rows."""
    weight = random(shape, torch.float32).numpy()
    found = codebook4(Dense(weight, "float32"), table).dequantize().reshape(-1)
    for start in range(0, weight.size, 64):
        block = weight.reshape(-1)[start : start + 64]
        choices = table * np.abs(block).max()
        nearest = np.abs(block[:, None] - choices).min(1)
        error = np.abs(block - found[start : start + 64])
        np.testing.assert_allclose(error, nearest, atol=1e-7)


def test_every_e4m3_number_and_every_tie_is_torchs() -> None:
    every = np.sort(to_float32(np.arange(256, dtype=np.uint8), "float8_e4m3fn"))
    every = every[np.isfinite(every)]
    middles = (every[1:] + every[:-1]) / np.float32(2)
    beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    require_torchs_e4m3(np.concatenate([every, -every, middles, *beside]))


@given(arrays(np.float32, 64, elements=st.floats(-448, 448, width=32)))
def test_e4m3_numbers_are_torchs(values: Float32) -> None:
    require_torchs_e4m3(values)


def require_torchs_e4m3(values: Float32) -> None:
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(to_e4m3(values), expected)


# --- never further than half a step ----------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_are_rounded_to_the_nearest_step(shape: tuple[int, int], bits: int) -> None:
    weight = random(shape, torch.float32).numpy() + np.float32(0.02)
    kind = int_groups(Dense(weight, "float32"), bits)
    found = kind.dequantize()
    for start in range(0, shape[1], 128):
        part = weight[:, start : start + 128]
        step = (part.max(1).clip(0) - part.min(1).clip(max=0)) / (2**bits - 1)
        error = np.abs(part - found[:, start : start + 128]).max(1)
        # a zero point that is rounded too may push the outermost weight half a step further
        assert (error <= step * 1.001 + 1e-9).all()
    assert not kind.dequantize()[weight == 0].any()


def test_a_weight_of_zero_stays_zero() -> None:
    weight = random((6, 256), torch.float32).numpy()
    weight[:, ::3] = 0
    for method in METHODS:
        kind = QUANTIZE[method](Dense(weight, "float32"))
        assert not kind.dequantize()[:, ::3].any()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("shape", [(700, 512), (4000, 80)], ids=str)
def test_parts_of_a_large_matrix_are_one(
    method: type[QuantizationMethod], shape: tuple[int, int]
) -> None:
    """2^17 weights at a time; rows of 80 end inside blocks of 64."""
    weight = Dense(random(shape, torch.float32).numpy(), "float32")
    whole, parts = QUANTIZE[method](weight), in_parts(weight, QUANTIZE[method])
    np.testing.assert_array_equal(parts.dequantize(), whole.dequantize())
    assert parts.nbytes == whole.nbytes
    assert parts.activation == whole.activation


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_matrix_but_the_head_is_quantized(
    tmp_path: Path, family: str, method: type[QuantizationMethod]
) -> None:
    """Biases stay, and what is stored transposed is quantized by its outputs all the same."""
    oracle = make_tiny(tmp_path, family, dtype=torch.bfloat16)
    spec, weights = open_quantized(tmp_path, method, plain=True)
    modules = dict(oracle.named_modules())
    made = method({})
    for linear in spec.linears():
        kind = weights.linear(linear.name)
        assert isinstance(kind, Dense if is_head(linear) else METHODS[method])
        assert made.kind(linear) == kind.name
        weight = torch.from_numpy(kind.dequantize())
        stored = modules[linear.name].weight.detach()
        stored = stored.T if linear.transposed else stored
        assert (weight - stored).abs().max() <= 0.17 * stored.abs().max()
        modules[linear.name].weight.data.copy_(weight.T if linear.transposed else weight)
    ids = [3, 17, 29, 101, 44]
    found = logits(run(spec, weights), ids)
    with torch.inference_mode():
        expected = oracle(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# method → the largest divergence from the 16-bit model's distribution, in nats per token
DIVERGENCE: dict[type[QuantizationMethod], float] = {
    Bitsandbytes: 2e-5,
    Eetq: 2e-5,
    Int8: 2e-5,
    Fp8Format: 3e-4,
    Nf4: 3e-3,
    Fp4: 3e-3,
    Int4: 3e-3,
}


@pytest.mark.parametrize("method", DIVERGENCE, ids=lambda method: method.name)
def test_a_trained_model_says_nearly_the_same(method: type[QuantizationMethod]) -> None:
    path = checkpoint("base")
    runner = run(*open_quantized(path, method, plain=True))
    for ids, expected, _ in prompts(path / "ref_logits_fp32.safetensors"):
        found, wanted = logits(runner, ids).log_softmax(-1), expected.log_softmax(-1)
        divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
        assert divergence <= DIVERGENCE[method]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_plain_model_is_served_by_naming_a_method(
    tmp_path: Path, method: type[QuantizationMethod]
) -> None:
    path = checkpoint("base")
    with LLM(path, quantize=method.name, dtype="float32", threads=1) as llm:
        assert llm.info.quantization == method.name
        sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
        assert len(llm.generate([[5, 6, 7]], sampling, progress=False)[0].token_ids) == 4


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Nf4, Fp4, Eetq, Int8, Int4], ids=lambda method: method.name)
def test_what_is_quantized_is_not_quantized_again(method: type[QuantizationMethod]) -> None:
    assert not method.detect({})
    with pytest.raises(UnsupportedModel, match=r"quantized already, by gptq.*without --quantize"):
        method({"quant_method": "gptq"})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_matrix_without_meaning_is_refused(
    tmp_path: Path, method: type[QuantizationMethod]
) -> None:
    make_tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    _, weights = open_quantized(tmp_path, method, plain=True)
    with pytest.raises(CheckpointError, match="holds infinities or NaN"):
        weights.linear("model.layers.0.mlp.up_proj")
