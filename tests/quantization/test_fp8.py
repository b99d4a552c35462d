"""FP8 files as several makers write them: scales of every shape and name, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import Activation, Dense, Fp8
from infercore_quantization.fp8 import Fp8Format
from reference_logits import logits, open_quantized, run
from stored_folders import LAYER, Stored, StoredFolder, stored_folder

E4M3 = torch.float8_e4m3fn


def config(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **changes}


def stored(weight: Tensor, scales: Tensor, full: Tensor, suffix: str = "weight_scale") -> Stored:
    """full: the scales, one for each weight."""
    codes = (weight / full).to(E4M3)
    return Stored({"weight": codes, suffix: scales}, codes.float() * full)


def per_tensor(weight: Tensor, shape: tuple[int, ...] = (), suffix: str = "weight_scale") -> Stored:
    scale = weight.abs().max() / 448
    return stored(weight, scale.reshape(shape), scale, suffix)


def per_channel(weight: Tensor, dtype: torch.dtype = torch.float32, flat: bool = False) -> Stored:
    scales = (weight.abs().amax(1, keepdim=True) / 448).to(dtype)
    return stored(weight, scales.flatten() if flat else scales, scales.float())


def per_block(
    weight: Tensor, rows: int, columns: int, dtype: torch.dtype = torch.float32
) -> Stored:
    n, k = weight.shape
    grid = torch.rand(-(-n // rows), -(-k // columns), generator=torch.Generator().manual_seed(n))
    scales = (2 ** (-10 - 2 * grid)).to(dtype)
    full = scales.float().repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    return stored(weight, scales, full, "weight_scale_inv")


def but_the_head(make: Callable[[Tensor], Stored]) -> Callable[[str, Tensor], Stored | None]:
    return lambda name, weight: None if name == "lm_head" else make(weight)


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Stored]]] = {
    "one scale (AutoFP8)": ({"ignored_layers": ["lm_head"]}, per_tensor),
    "one scale, [1]": ({}, lambda w: per_tensor(w, (1,))),
    "one inverse scale (transformers)": (
        {"weight_block_size": None},
        lambda w: per_tensor(w, (), "weight_scale_inv"),
    ),
    "outputs": ({}, per_channel),
    "outputs (FBGEMM)": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        lambda w: per_channel(w, flat=True),
    ),
    "outputs, bfloat16": ({}, lambda w: per_channel(w, torch.bfloat16)),
    "blocks (DeepSeek)": ({"weight_block_size": [128, 128]}, lambda w: per_block(w, 128, 128)),
    "blocks that do not divide": ({"weight_block_size": [32, 20]}, lambda w: per_block(w, 32, 20)),
    "powers of two": (
        {"weight_block_size": [16, 16], "scale_fmt": "ue8m0"},
        lambda w: per_block(w, 16, 16, torch.float8_e8m0fnu),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    changes, make = VARIANTS[name]
    made = stored_folder(tmp_path, but_the_head(make), config(**changes))
    for kind in made.require_equal(Fp8Format).values():
        assert isinstance(kind, Fp8)
        assert kind.activation == Activation("float8_e4m3fn")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_are_those_of_the_dequantized_weights(tmp_path: Path, family: str) -> None:
    """Three matrices with a scale each become one product; biases stay."""
    made = stored_folder(tmp_path, but_the_head(per_tensor), config(), family)
    made.require_logits(Fp8Format)


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    """Which itself reads blocks of scales, and dequantizes them where it has no kernel."""
    pytest.importorskip("accelerate", reason="transformers reads fp8 with accelerate")
    changes = {"weight_block_size": [16, 16], "modules_to_not_convert": ["lm_head"]}
    stored_folder(tmp_path, but_the_head(lambda w: per_block(w, 16, 16)), config(**changes))
    auto: Any = transformers.AutoModelForCausalLM
    dequantize = transformers.FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    oracle = auto.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", quantization_config=dequantize
    )
    ids = [3, 17, 29, 101, 44]
    found = logits(run(*open_quantized(tmp_path, Fp8Format)), ids)
    with torch.inference_mode():
        torch.testing.assert_close(found, oracle(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize(
    ("stated", "suffix"),
    [
        (config(activation_scheme="static"), "input_scale"),
        (config(activation_scheme="static"), "activation_scale"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "input_scale"),
    ],
)
def test_static_activations_keep_their_scale(
    tmp_path: Path, stated: dict[str, Any], suffix: str
) -> None:
    def make(weight: Tensor) -> Stored:
        made = per_tensor(weight)
        made.tensors[suffix] = torch.tensor(len(weight) / 128)
        return made

    made = stored_folder(tmp_path, but_the_head(make), stated)
    for kind in made.require_equal(Fp8Format).values():
        assert kind.activation == Activation("float8_e4m3fn", kind.shape[0] / 128)
    made.require_logits(Fp8Format)


def test_scales_of_the_cache_and_bounds_of_a_kernel_are_let_pass(tmp_path: Path) -> None:
    made = stored_folder(tmp_path, but_the_head(per_channel), {"quant_method": "fbgemm_fp8"})
    attention = "model.layers.0.self_attn"
    for name in (f"{attention}.k_scale", f"{attention}.v_proj.v_scale", f"{attention}.kv_scale"):
        made.tensors[name] = torch.tensor(0.5)
    made.tensors[f"{LAYER}.input_scale_ub"] = torch.tensor([1200.0])
    made.save()
    made.require_equal(Fp8Format)


@pytest.mark.parametrize(
    "skip",
    [
        {"modules_to_not_convert": ["model.layers.0", "k_proj"]},
        {"ignored_layers": ["re:.*layers\\.0\\..*", "model.layers.1.self_attn.k_proj"]},
        {"ignore": ["model.layers.0.*", "model.layers.1.self_attn.k_proj"]},
        {"exclude_modules": ["*layers.0*", "*k_proj"]},
    ],
)
def test_layers_that_are_left_alone(tmp_path: Path, skip: dict[str, Any]) -> None:
    """And a head that is quantized, which its scale says."""

    def make(name: str, weight: Tensor) -> Stored | None:
        plain = name.startswith("model.layers.0.") or name.endswith("k_proj")
        return None if plain else per_tensor(weight)

    made = stored_folder(tmp_path, make, config(**skip))
    assert "lm_head" in made.require_equal(Fp8Format)
    _, weights = open_quantized(tmp_path, Fp8Format)
    assert isinstance(weights.linear(LAYER), Dense)
    made.require_logits(Fp8Format)


def test_a_name_that_begins_like_one_in_the_list_is_not_in_it(tmp_path: Path) -> None:
    skip = ["model.layers.0.mlp.up", "lm_head"]
    made = stored_folder(tmp_path, but_the_head(per_tensor), config(modules_to_not_convert=skip))
    del made.tensors[f"{LAYER}.weight_scale"]
    made.save()
    with pytest.raises(CheckpointError, match=f"missing: {LAYER}.weight_scale"):
        made.kinds(Fp8Format)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"quant_method": "gptq"}, "by 'gptq' and not in a format of fp8"),
        (config(activation_scheme="odd"), "activation_scheme is 'odd'; served are dynamic, static"),
        (config(fmt="e3m4"), "fmt is 'e3m4'"),
        (config(expert_dtype="fp4"), "expert_dtype is 'fp4'; served are fp8"),
        (config(weight_block_size=[128]), "must be two positive integers"),
        (config(weight_block_size=[128, 0]), "must be two positive integers"),
        (config(weight_block_size="128x128"), "must be two positive integers"),
        (config(modules_to_not_convert=[1]), "must be a list of module names"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "of ModelOpt's formats FP8"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_file_is_opened(
    stated: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        Fp8Format(stated)


def test_an_expression_that_is_none_is_refused(tmp_path: Path) -> None:
    skip = {"ignored_layers": ["re:("]}
    made = stored_folder(tmp_path, but_the_head(per_tensor), config(**skip), num_hidden_layers=1)
    del made.tensors[f"{LAYER}.weight_scale"]
    made.save()
    with pytest.raises(UnsupportedModel, match="no regular expression"):
        made.kinds(Fp8Format)


def harmed(made: StoredFolder, suffix: str, value: Tensor | None) -> StoredFolder:
    del made.tensors[f"{LAYER}.{suffix}"]
    if value is not None:
        made.tensors[f"{LAYER}.{suffix}"] = value
    made.save()
    return made


@pytest.mark.parametrize(
    ("suffix", "value", "says"),
    [
        ("weight_scale_inv", None, "missing: .*up_proj.weight_scale_inv"),
        ("weight_scale_inv", torch.ones(5, 2), r"weight_scale_inv \(5, 2\) instead of \(5, 3\)"),
        ("weight_scale_inv", torch.full((5, 3), torch.nan), "holds infinities or NaN"),
        ("weight_scale_inv", torch.ones(5, 3, dtype=torch.int32), "weight_scale_inv is int32"),
        ("weight", torch.zeros(80, 47).to(E4M3), "of another shape: .*up_proj.weight"),
        ("weight", torch.zeros(80, 48).half(), "up_proj.weight is float16"),
    ],
)
def test_harm_to_a_file_is_named(
    tmp_path: Path, suffix: str, value: Tensor | None, says: str
) -> None:
    blocks = config(weight_block_size=[16, 16])
    made = stored_folder(tmp_path, but_the_head(lambda w: per_block(w, 16, 16)), blocks)
    with pytest.raises(CheckpointError, match=says):
        harmed(made, suffix, value).kinds(Fp8Format)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "missing: .*up_proj.input_scale"),
        (torch.ones(2), r"up_proj.input_scale \(2,\) instead of \(\)"),
        (torch.tensor(torch.inf), "input_scale holds infinities"),
    ],
)
def test_harm_to_a_static_scale_is_named(tmp_path: Path, value: Tensor | None, says: str) -> None:
    def make(weight: Tensor) -> Stored:
        made = per_tensor(weight)
        made.tensors["input_scale"] = torch.tensor(1.0)
        return made

    made = stored_folder(tmp_path, but_the_head(make), config(activation_scheme="static"))
    with pytest.raises(CheckpointError, match=says):
        harmed(made, "input_scale", value).kinds(Fp8Format)


def test_a_static_scale_of_zero_is_refused(tmp_path: Path) -> None:
    def make(weight: Tensor) -> Stored:
        made = per_tensor(weight)
        made.tensors["input_scale"] = torch.tensor(0.0)
        return made

    made = stored_folder(tmp_path, but_the_head(make), config(activation_scheme="static"))
    with pytest.raises(UnsupportedModel, match="static activation scale is a positive number"):
        made.kinds(Fp8Format)
