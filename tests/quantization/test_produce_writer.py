"""Files that `quantize` writes: words bit by bit, and what the readers make of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from infercore import LLM, SamplingParams
from infercore.errors import ConfigError, UnsupportedModel
from infercore.kinds import FP4, NF4, Codebook4, Dense, IntGrouped
from infercore.launch import quiet
from infercore_quantization.on_load import codebook4
from infercore_quantization.packing import awq_values, unpack_stream
from infercore_quantization.produce.opening import open_model
from infercore_quantization.produce.packed_writer import awq_words, stream
from infercore_quantization.produce.rounding import nearest
from infercore_quantization.produce.run import UNFINISHED, quantize
from infercore_quantization.produce.settings import Settings
from packed_files import awq_words as words_by_hand
from packed_files import streams
from tiny_models import make_tiny


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 3), st.integers(1, 3), st.randoms())
def test_streams_are_those_packed_bit_by_bit(bits: int, rows: int, width: int, random: Any) -> None:
    shape = (rows, 32 * width)
    codes = np.array([random.randrange(2**bits) for _ in range(rows * 32 * width)], np.uint8)
    codes = codes.reshape(shape)
    words = stream(codes, bits)
    assert words.tolist() == streams(codes, bits).tolist()
    assert unpack_stream(words, bits, shape[1]).tolist() == codes.tolist()


def test_awq_words_are_those_packed_by_hand() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (5, 24)).astype(np.uint8)
    words = awq_words(codes)
    assert words.tolist() == words_by_hand(codes).tolist()
    assert awq_values(words).tolist() == codes.tolist()


def made(tmp_path: Path, family: str, method: str, **options: Any) -> tuple[Path, Path]:
    """(a tiny model's folder, its quantized folder)."""
    original, output = tmp_path / "original", tmp_path / "quantized"
    make_tiny(original, family)
    quantize(open_model(str(original)), Settings.of(method, **options), output, None, quiet)
    return original, output


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("method", "symmetric"), [("int4", True), ("int4", False), ("int8", True), ("int8", False)]
)
def test_rounded_matrices_are_read_back_as_they_were_made(
    tmp_path: Path, family: str, method: str, symmetric: bool
) -> None:
    original, output = made(tmp_path, family, method, group_size=16, symmetric=symmetric)
    before, after = open_model(str(original)), open_model(str(output))
    scheme = Settings.of(method, group_size=16, symmetric=symmetric).scheme
    assert after.method.name == "gptq"
    for linear in before.spec.linears():
        kind = after.weights.linear(linear.name)
        weight = before.weights.linear(linear.name).dequantize()
        if linear.name == before.spec.head.name:
            assert np.array_equal(kind.dequantize(), weight)
            continue
        wanted = nearest(torch.from_numpy(np.ascontiguousarray(weight)), scheme)
        assert isinstance(kind, IntGrouped)
        assert kind.bits == wanted.bits
        assert np.array_equal(kind.dequantize(), wanted.dequantize())
        steps = wanted.scales.dequantize()[wanted.group_of_row].T
        # a symmetric range ends half a step before its largest weight
        assert (np.abs(kind.dequantize() - weight) <= 1.01 * steps).all()


@pytest.mark.parametrize(("method", "table"), [("nf4", NF4), ("fp4", FP4)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_4_bit_floats_are_read_back_as_bitsandbytes_makes_them(
    tmp_path: Path, family: str, method: str, table: Any
) -> None:
    original, output = made(tmp_path, family, method)
    before, after = open_model(str(original)), open_model(str(output))
    assert after.method.name == "bitsandbytes"
    for linear in before.spec.layers[0].mlp.inputs:
        kind = after.weights.linear(linear.name)
        weight = np.ascontiguousarray(before.weights.linear(linear.name).dequantize())
        wanted = codebook4(Dense(weight, "float32"), table)
        assert isinstance(kind, Codebook4)
        assert np.array_equal(kind.dequantize(), wanted.dequantize())


def test_an_output_is_a_model_of_its_own(tmp_path: Path) -> None:
    original, output = made(tmp_path, "llama", "int8", group_size=16)
    assert not (output / UNFINISHED).exists()
    names = [name for file in output.glob("*.safetensors") for name in load_file(file)]
    assert len(names) == len(set(names))
    assert "model.layers.1.mlp.down_proj.g_idx" in names
    before = open_model(str(original)).weights.tensor("model.norm.weight")
    after = open_model(str(output)).weights.tensor("model.norm.weight")
    assert np.array_equal(before.data, after.data)


def test_the_bundled_model_answers_after_it_was_quantized(tmp_path: Path) -> None:
    output = tmp_path / "int8"
    quantize(open_model("infercore/demo"), Settings.of("int8"), output, None, quiet)
    sampling = SamplingParams(temperature=0.0, max_tokens=8)
    answers = []
    for model in ("infercore/demo", str(output)):
        with LLM(model, dtype="float32", threads=1, max_model_len=64) as llm:
            answers.append(llm.generate("The sky is", sampling, progress=False)[0].text)
    assert answers[0] == answers[1]


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    original, output = made(tmp_path, "llama", "int8", group_size=16)
    opened, new = open_model(str(original)), tmp_path / "new"
    with pytest.raises(UnsupportedModel, match="quantized already, as gptq"):
        quantize(open_model(str(output)), Settings.of("int4"), new, None, quiet)
    with pytest.raises(ConfigError, match="groups of 128 do not divide"):
        quantize(opened, Settings.of("int4"), new, None, quiet)
    with pytest.raises(UnsupportedModel, match="do not fill words"):
        quantize(opened, Settings.of("gptq", bits=3, group_size=16), new, None, quiet)
    with pytest.raises(ConfigError, match="is not empty"):
        quantize(opened, Settings.of("int4", group_size=16), output, None, quiet)
    assert not new.exists()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("gguf", {}, "'gguf' is not known"),
        ("awq", {"bits": 3}, "has 4 bits"),
        ("awq", {"symmetric": True}, "--symmetric means nothing to --method awq"),
        ("int4", {"damping": 0.1}, "--damping means nothing"),
        ("nf4", {"group_size": 64}, "--group-size means nothing"),
        ("int8", {"window": 64}, "--window means nothing"),
        ("gptq", {"group_size": 0}, "neither positive nor -1"),
    ],
)
def test_options_without_a_meaning_are_refused(
    method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.of(method, **options)
