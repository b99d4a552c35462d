"""AWQ: a file of the field's own tool and files packed here bit by bit; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from infercore import LLM, SamplingParams
from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import Dense, unpack_cells
from infercore_quantization.awq import Awq
from infercore_quantization.packing import awq_codes, awq_values
from packed_files import Packed, PackedFolder, awq, awq_words, packed_folder, require_equal
from reference_logits import (
    REFERENCE,
    checkpoint,
    largest_difference,
    logits,
    open_quantized,
    prompts,
    run,
)


def test_gptqmodels_file_gives_its_logits_and_tokens() -> None:
    path = checkpoint("awq")
    opened = open_quantized(path, Awq)
    assert largest_difference(run(*opened), path / REFERENCE) <= 1e-4
    assert largest_difference(run(*opened, "bfloat16"), path / REFERENCE) <= 0.03


@pytest.mark.parametrize("quantize", [None, "awq", "gptq", "marlin"])
def test_it_is_served_unnamed_and_under_tgis_names(quantize: str | None) -> None:
    path = checkpoint("awq")
    with LLM(path, dtype="float32", threads=1, quantize=quantize) as llm:
        assert llm.info.quantization == "awq"
        ids, _, greedy = next(prompts(path / REFERENCE))
        sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        assert ids + llm.generate([ids], sampling, progress=False)[0].token_ids == greedy


@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_words_are_unpacked_as_the_order_says(rows: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 16, (rows, 8 * width))
    words = awq_words(values)
    assert awq_values(words).tolist() == values.tolist()
    codes = awq_codes(words)
    assert codes.shape == (8 * width, (rows + 1) // 2)
    assert unpack_cells(codes, rows).tolist() == values.T.tolist()
    if rows % 2:  # equal weights have equal bytes
        assert not (codes[:, -1] >> 4).any()


def config(**changes: Any) -> dict[str, Any]:
    stated = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True}
    return {**stated, "version": "gemm", "modules_to_not_convert": None, **changes}


def folder(path: Path, family: str = "llama", **changes: Any) -> PackedFolder:
    """A folder with every matrix but the head packed as `changes` of the configuration say."""
    stated = config(**changes)
    rng = np.random.default_rng(7)
    version = stated["version"].lower()
    layout = version if version == "gemv" else "gemm"

    def make(name: str, n: int, k: int) -> Packed | None:
        if name == "lm_head" or name in (stated["modules_to_not_convert"] or ()):
            return None
        return awq(rng, n, k, stated["group_size"], layout)

    return packed_folder(path, make, stated, family)


@pytest.mark.parametrize(
    ("version", "group_size"),
    [
        ("gemm", 16),
        *((version, size) for version in ("gemm", "gemv") for size in (32, 64, 128, -1)),
    ],
)
def test_every_variant_is_read_bit_for_bit(tmp_path: Path, version: str, group_size: int) -> None:
    require_equal(folder(tmp_path, version=version, group_size=group_size), Awq)


@pytest.mark.parametrize("version", ["GEMM", "exllama", "ipex"])
def test_names_of_kernels_for_the_same_layout(tmp_path: Path, version: str) -> None:
    require_equal(folder(tmp_path, version=version), Awq)


@pytest.mark.parametrize(("family", "version"), [("llama", "gemm"), ("gpt2", "gemv")])
def test_logits_are_those_of_the_unpacked_weights(
    tmp_path: Path, family: str, version: str
) -> None:
    """Biases, fused and transposed matrices (gpt2); layers that are not converted (llama)."""
    plain = "model.layers.1.mlp.gate_proj"
    made = folder(tmp_path, family, version=version, group_size=32, modules_to_not_convert=[plain])
    ids = [3, 17, 29, 101, 44]
    spec, weights = open_quantized(tmp_path, Awq)
    if family == "llama":
        assert isinstance(weights.linear(plain), Dense)
    expected = made.oracle(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits(run(spec, weights), ids), expected, atol=1e-4, rtol=1e-4)


def test_autoround_packs_awq_too(tmp_path: Path) -> None:
    made = folder(tmp_path)
    made.config = {"quant_method": "auto-round", "bits": 4, "group_size": 16, "sym": False}
    made.config["packing_format"] = "auto_round:auto_awq"
    made.save()
    assert Awq.detect(made.config)
    require_equal(made, Awq)


def test_autoawqs_older_file_is_told_by_its_own_words() -> None:
    legacy = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    assert Awq.detect(legacy)
    Awq(legacy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 8}, "bits is 8; served are 4"),
        ({"bits": None}, "lacks bits"),
        ({"group_size": "all"}, "group_size is 'all'"),
        ({"zero_point": 1}, "it must be true or false"),
        ({"version": "marlin"}, r"format 'marlin' is not read.*GPTQModel"),
        ({"version": "gemv_fast"}, r"format 'gemv_fast' is not read.*'gemm'"),
        ({"version": "llm-awq"}, r"format 'llm-awq' is not read.*--quantize int4"),
        ({"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_file_is_opened(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        Awq(config(**changes))


LAYER = "model.layers.0.mlp.up_proj"  # 80 outputs of 48 inputs, in groups of 16


def cut(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array[:-1])


@pytest.mark.parametrize(
    ("suffix", "harm", "says"),
    [
        ("scales", cut, r"up_proj.scales has the shape \[2, 80\].*would be \[3, 80\]"),
        ("qweight", cut, "of another shape: .*up_proj.qweight"),
        ("qzeros", cut, "of another shape: .*up_proj.qzeros"),
        ("qweight", lambda a: a.view(np.float32), "up_proj.qweight is float32"),
        ("scales", lambda a: a * np.float16(np.nan), "up_proj.scales holds infinities or NaN"),
    ],
)
def test_harm_to_a_file_is_named(tmp_path: Path, suffix: str, harm: Any, says: str) -> None:
    made = folder(tmp_path)
    made.tensors[f"{LAYER}.{suffix}"] = harm(made.tensors[f"{LAYER}.{suffix}"])
    made.save()
    with pytest.raises(CheckpointError, match=says):
        require_equal(made, Awq)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"group_size": 128}, r"with group_size 128 it would be \[1, 48\]"),
        ({"version": "gemv", "group_size": 32}, "check that quantization_config belongs to"),
        ({"zero_point": False}, "zero points from .* symmetric 4-bit layer has 8 alone"),
    ],
)
def test_a_configuration_of_other_weights_is_named(
    tmp_path: Path, stated: dict[str, Any], says: str
) -> None:
    made = folder(tmp_path)
    made.config |= stated
    made.save()
    with pytest.raises(CheckpointError, match=says):
        require_equal(made, Awq)


def test_gemv_has_few_sizes_of_groups(tmp_path: Path) -> None:
    made = folder(tmp_path)
    made.config["version"] = "gemv"
    made.save()
    with pytest.raises(UnsupportedModel, match="groups of 32, 64 or at least 128"):
        open_quantized(tmp_path, Awq)
