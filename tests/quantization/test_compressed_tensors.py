"""compressed-tensors: llm-compressor's own files, each layout written here by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compressed_files import compressed, config, config4, folder, four_bit_floats, scheme
from infercore import LLM, SamplingParams
from infercore.errors import CheckpointError
from infercore.kinds import Activation, Codebook4, Dense, Fp8, IntGrouped, Kind
from infercore.model_spec import LinearSpec
from infercore.quantization import TensorFile
from infercore_quantization.compressed_tensors import CompressedTensors
from reference_logits import (
    REFERENCE,
    checkpoint,
    largest_difference,
    open_quantized,
    prompts,
    run,
)
from stored_folders import LAYER, Stored, stored_folder

NAMES = ("compressed-tensors", "fp8")


# --- files of the tool itself ----------------------------------------------------------------


class Rounded(CompressedTensors):
    """Weights as the tool decompresses them: in bfloat16."""

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        weight = torch.from_numpy(super().read(linear, file).dequantize()).bfloat16()
        return Dense(weight.view(torch.uint16).numpy(), "bfloat16")


@pytest.mark.parametrize("name", NAMES)
def test_llm_compressors_files_give_its_logits_and_tokens(name: str) -> None:
    path = checkpoint(name)
    opened = open_quantized(path, CompressedTensors)
    assert largest_difference(run(*opened), path / REFERENCE) <= 1e-2
    assert largest_difference(run(*opened, "bfloat16"), path / REFERENCE) <= 0.05


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_of_the_difference_is_the_tools_rounding(name: str) -> None:
    path = checkpoint(name)
    runner = run(*open_quantized(path, Rounded))
    assert largest_difference(runner, path / REFERENCE) <= 1e-4
    _, weights = open_quantized(path, Rounded)
    (expected,) = load_file(path / "ref_dequant_weights.safetensors").values()
    found = weights.linear("model.layers.0.self_attn.q_proj").dequantize()
    np.testing.assert_array_equal(found, expected.float().numpy())


@pytest.mark.parametrize("name", NAMES)
def test_llm_compressors_files_are_served_without_being_named(name: str) -> None:
    path = checkpoint(name)
    with LLM(path, dtype="float32", threads=1) as llm:
        assert llm.info.quantization == "compressed-tensors"
        ids, _, greedy = next(prompts(path / REFERENCE))
        sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        assert ids + llm.generate([ids], sampling, progress=False)[0].token_ids == greedy


# --- files written by hand -------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["group", "channel", "tensor"])
def test_packed_integers_are_read_bit_for_bit(
    tmp_path: Path, bits: int, symmetric: bool, strategy: str
) -> None:
    size = 16 if strategy == "group" else None
    weights = scheme("int", bits, symmetric=symmetric, strategy=strategy, group_size=size)
    for kind in folder(tmp_path, config(weights)).require_equal(CompressedTensors).values():
        assert isinstance(kind, IntGrouped)
        assert kind.bits == bits
        assert kind.activation is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_act_order_is_a_map_of_groups(tmp_path: Path, symmetric: bool) -> None:
    stated = config(scheme(symmetric=symmetric, actorder="group"))
    made = folder(tmp_path, stated, g_idx=True)
    made.require_equal(CompressedTensors)
    made.tensors[f"{LAYER}.weight_g_idx"][0] = 99
    made.save()
    with pytest.raises(CheckpointError, match="in group 99"):
        made.kinds(CompressedTensors)


def test_a_map_that_was_never_filled_in_stands_for_neighbours(tmp_path: Path) -> None:
    made = folder(tmp_path, config(scheme()))
    made.tensors[f"{LAYER}.weight_g_idx"] = torch.full((48,), -1, dtype=torch.int32)
    made.save()
    made.require_equal(CompressedTensors)


@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "channel", "group_size": None},
        {"strategy": "tensor", "group_size": None},
        {"strategy": "group", "group_size": 20},
        {"strategy": "block", "group_size": None, "block_structure": [32, 20]},
    ],
    ids=lambda changes: changes["strategy"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_plain_integers_are_read_bit_for_bit(
    tmp_path: Path, form: str, symmetric: bool, changes: dict[str, Any], bits: int
) -> None:
    weights = scheme("int", bits, symmetric=symmetric, **changes)
    folder(tmp_path, config(weights, form)).require_equal(CompressedTensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "channel", "group_size": None},
        {"strategy": "tensor", "group_size": None},
        {"strategy": "group", "group_size": 16},
        {"strategy": "block", "group_size": None, "block_structure": [32, 20]},
        {"strategy": "block", "group_size": None, "block_structure": "16x16"},
    ],
    ids=lambda changes: f"{changes['strategy']}",
)
def test_floats_are_read_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    weights = scheme("float", 8, **changes)
    if weights.get("block_structure") == "16x16":
        weights["block_structure"] = [16, 16]
    stated = config(weights, "float-quantized")
    made = folder(tmp_path, stated)
    if changes.get("block_structure") == "16x16":  # as older versions wrote it
        weights["block_structure"] = "16x16"
        made.save()
    for kind in made.require_equal(CompressedTensors).values():
        assert isinstance(kind, Fp8)


@pytest.mark.parametrize("form", ["mxfp4-pack-quantized", "nvfp4-pack-quantized"])
def test_4_bit_floats_are_read_bit_for_bit(tmp_path: Path, form: str) -> None:
    def quantize(name: str, weight: Tensor) -> Stored | None:
        return None if name == "lm_head" else four_bit_floats(weight, form)

    made = stored_folder(tmp_path, quantize, config4(form))
    for kind in made.require_equal(CompressedTensors).values():
        assert isinstance(kind, Codebook4)
        assert isinstance(kind.scales, Dense if form.startswith("mx") else Fp8)
    made.require_logits(CompressedTensors)
    if form.startswith("mx"):
        made.tensors[f"{LAYER}.weight_scale"][3, 1] = 255
        says = "weight_scale holds NaN"
    else:
        made.tensors[f"{LAYER}.weight_global_scale"][0] = 0
        says = "weight_global_scale is 0.0"
    made.save()
    with pytest.raises(CheckpointError, match=says):
        made.kinds(CompressedTensors)


def test_8_bit_floats_may_have_powers_of_two_for_scales(tmp_path: Path) -> None:
    weights = scheme("float", 8, group_size=32)

    def quantize(name: str, weight: Tensor) -> Stored | None:
        if name == "lm_head":
            return None
        n, k = weight.shape
        exponents = torch.full((n, -(-k // 32)), 119, dtype=torch.uint8)
        exponents[::2] += 1
        full = torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)[:, :k]
        codes = (weight / full).to(torch.float8_e4m3fn)
        return Stored({"weight": codes, "weight_scale": exponents}, codes.float() * full)

    made = stored_folder(tmp_path, quantize, config(weights, "mxfp8-quantized"))
    for kind in made.require_equal(CompressedTensors).values():
        assert isinstance(kind, Fp8)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
def test_logits_are_those_of_the_dequantized_weights(
    tmp_path: Path, family: str, form: str
) -> None:
    folder(tmp_path, config(scheme("int", 4), form), family).require_logits(CompressedTensors)


INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
E4M3 = {"num_bits": 8, "type": "float", "symmetric": True}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (None, None),
        ({**INT8, "strategy": "token", "dynamic": True}, Activation("int8")),
        ({**INT8, "strategy": "tensor", "dynamic": True}, Activation("int8")),
        ({**INT8, "strategy": "tensor", "dynamic": False}, Activation("int8", 0.5)),
        ({**E4M3, "strategy": "token", "dynamic": True}, Activation("float8_e4m3fn")),
        ({**E4M3, "strategy": "tensor", "dynamic": False}, Activation("float8_e4m3fn", 0.5)),
        ({**INT8, "strategy": "tensor", "dynamic": False, "symmetric": False}, None),
        ({**INT8, "strategy": "token", "dynamic": True, "num_bits": 4}, None),
    ],
)
def test_activations_are_described_where_they_can_be(
    tmp_path: Path, inputs: dict[str, Any] | None, expected: Activation | None
) -> None:
    weights = scheme("int", 8, strategy="channel", group_size=None)
    stated = config(weights, "int-quantized")
    stated["config_groups"]["group_0"]["input_activations"] = inputs
    made = folder(tmp_path, stated)
    if inputs and not inputs["dynamic"]:
        for name in made.weights:
            made.tensors[f"{name}.input_scale"] = torch.tensor([0.5])
            if not inputs["symmetric"]:
                made.tensors[f"{name}.input_zero_point"] = torch.tensor([3], dtype=torch.int8)
        made.save()
    for kind in made.require_equal(CompressedTensors).values():
        assert kind.activation == expected
    made.require_logits(CompressedTensors)


def test_layers_of_one_model_differ(tmp_path: Path) -> None:
    """A target's name goes before a pattern, and that before a class, in whatever order."""
    four, eight, floats = (
        scheme(),
        scheme("int", 8, strategy="channel", group_size=None),
        scheme("float", 8, strategy="tensor", group_size=None),
    )
    plain = "model.layers.1.mlp.gate_proj"
    groups: dict[str, Any] = {
        "a": {"targets": ["Linear"], "weights": four, "format": "pack-quantized"},
        "b": {"targets": ["re:.*down_proj"], "weights": eight, "format": "int-quantized"},
        "c": {
            "targets": ["model.layers.1.mlp.down_proj", "lm_head"],
            "weights": floats,
            "format": "float-quantized",
        },
        "d": {"targets": [plain], "weights": None},
    }
    stated = config(None, "mixed-precision", config_groups=groups, ignore=["re:.*[qk]_proj$"])

    def quantize(name: str, weight: Tensor) -> Stored | None:
        if name.endswith(("q_proj", "k_proj")) or name == plain:
            return None
        if name in groups["c"]["targets"]:
            return compressed(weight, floats, "float-quantized")
        if name.endswith("down_proj"):
            return compressed(weight, eight, "int-quantized")
        return compressed(weight, four, "pack-quantized")

    made = stored_folder(tmp_path, quantize, stated)
    kinds = made.require_equal(CompressedTensors)
    assert isinstance(kinds["lm_head"], Fp8)
    made.require_logits(CompressedTensors)
    spec, weights = open_quantized(tmp_path, CompressedTensors)
    method = CompressedTensors(stated)
    method.inspect(dict.fromkeys(made.tensors, ()))
    for linear in spec.linears():
        assert method.kind(linear) == weights.linear(linear.name).name


def test_older_configurations_name_no_method() -> None:
    stated = config(scheme())
    del stated["quant_method"]
    assert CompressedTensors.detect(stated)
    assert not CompressedTensors.detect({"bits": 4, "group_size": 128})  # AutoGPTQ's
    assert not CompressedTensors.detect({**stated, "quant_method": "modelopt"})


def test_a_class_is_one_of_linear_layers_alone(tmp_path: Path) -> None:
    """GPT-2's matrices are no `Linear`, so that the target names none of them."""
    stated = config(scheme())
    made = stored_folder(tmp_path, lambda name, weight: None, stated, "gpt2")
    made.require_logits(CompressedTensors)


def test_scales_of_the_cache_are_let_pass(tmp_path: Path) -> None:
    made = folder(tmp_path, config(scheme(), kv_cache_scheme={**E4M3, "strategy": "tensor"}))
    for name in ("self_attn.k_scale", "self_attn.v_scale", "self_attn.k_proj.output_scale"):
        made.tensors[f"model.layers.0.{name}"] = torch.tensor([0.5])
    made.save()
    made.require_equal(CompressedTensors)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_package_packs_what_is_read_here(tmp_path: Path, bits: int, symmetric: bool) -> None:
    reason = "the format's own package is not installed"
    quantization: Any = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    compressors: Any = pytest.importorskip("compressed_tensors.compressors", reason=reason)
    stated = scheme("int", bits, symmetric=symmetric)
    arguments = quantization.QuantizationArgs(**stated)
    how = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    packer = compressors.BaseCompressor.get_value_from_registry("pack-quantized")

    def quantize(name: str, weight: Tensor) -> Stored | None:
        if name == "lm_head":
            return None
        scales = torch.full((len(weight), weight.shape[1] // 16), 0.5 / 2**bits)
        zeros = torch.ones(scales.shape, dtype=torch.int8) * (not symmetric)
        state = {"weight": weight, "weight_scale": scales, "weight_zero_point": zeros}
        packed = packer.compress(state, how)
        return Stored(packed, packer.decompress(packed, how)["weight"])

    stored_folder(tmp_path, quantize, config(stated)).require_equal(CompressedTensors)
