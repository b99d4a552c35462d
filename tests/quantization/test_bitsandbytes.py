"""bitsandbytes: its own files, every 4-bit and 8-bit layout written here by hand, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infercore import LLM, SamplingParams
from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import FP4, NF4, Codebook4, Codebook8, Dense, IntGrouped
from infercore_quantization.bitsandbytes import Bitsandbytes
from reference_logits import (
    REFERENCE,
    checkpoint,
    largest_difference,
    open_quantized,
    prompts,
    run,
)
from stored_folders import LAYER, Stored, StoredFolder, stored_folder

TABLES = {"nf4": torch.from_numpy(NF4.copy()), "fp4": torch.from_numpy(FP4.copy())}
STATE = "weight.quant_state.bitsandbytes__"


# --- files of the tool itself ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-int8"])
def test_the_tools_files_give_its_logits_and_tokens(name: str) -> None:
    path = checkpoint(name)
    opened = open_quantized(path, Bitsandbytes)
    assert largest_difference(run(*opened), path / REFERENCE) <= 1e-4
    assert largest_difference(run(*opened, "bfloat16"), path / REFERENCE) <= 0.05


@pytest.mark.parametrize(("name", "tolerance"), [("bnb-nf4", 0), ("bnb-int8", 1e-8)])
def test_the_tools_files_give_its_weights(name: str, tolerance: float) -> None:
    """To the bit in 4 bits; in 8, the tool multiplies by 1 / 127 last, where we do it first."""
    path = checkpoint(name)
    _, weights = open_quantized(path, Bitsandbytes)
    (expected,) = load_file(path / "ref_dequant_weights.safetensors").values()
    found = weights.linear("model.layers.0.self_attn.q_proj").dequantize()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-int8"])
def test_the_tools_files_are_served_without_being_named(name: str) -> None:
    path = checkpoint(name)
    with LLM(path, dtype="float32", threads=1) as llm:
        assert llm.info.quantization == "bitsandbytes"
        ids, _, greedy = next(prompts(path / REFERENCE))
        sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        assert ids + llm.generate([ids], sampling, progress=False)[0].token_ids == greedy


def test_doubly_quantized_scales_stay_so() -> None:
    spec, weights = open_quantized(checkpoint("bnb-nf4"), Bitsandbytes)
    stored = weights.tensor("model.layers.0.mlp.down_proj.weight.absmax")
    kind = weights.linear("model.layers.0.mlp.down_proj")
    assert isinstance(kind, Codebook4)
    assert isinstance(kind.scales, Codebook8)
    assert kind.scales.codes.nbytes == stored.nbytes
    small = 16 * 4 + 256 * 4 + 8 * 4  # tables and second-level scales, as stored too
    rows = spec.layers[0].mlp.down.out_features * 8
    assert kind.nbytes == 65536 + stored.nbytes + small + rows


# --- 4 bits ----------------------------------------------------------------------------------


def four_bit(
    weight: Tensor,
    kind: str = "nf4",
    *,
    blocksize: int = 64,
    double: bool = False,
    storage: torch.dtype = torch.uint8,
) -> Stored:
    """Random codes, and what follows from them."""
    shape, count, table = weight.shape, weight.numel(), TABLES[kind]
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(0, 16, (count + count % 2,), generator=generator)
    codes[count:] = 0
    blocks = -(-count // blocksize)
    absmax = 3 * shape[1] ** -0.5 * (0.5 + torch.rand(blocks, generator=generator))
    state: dict[str, Any] = {"quant_type": kind, "blocksize": blocksize, "dtype": "float32"}
    state["shape"] = list(shape)
    tensors = {
        "weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8).view(storage)[:, None],
        "weight.absmax": absmax,
        "weight.quant_map": table,
    }
    if double:
        second = torch.rand(-(-blocks // 4), generator=generator)
        levels = torch.linspace(-1, 1, 256)
        stored = torch.randint(0, 256, (blocks,), generator=generator)
        absmax = levels[stored] * second[torch.arange(blocks) // 4] + 1.5
        tensors["weight.absmax"] = stored.to(torch.uint8)
        tensors["weight.nested_absmax"], tensors["weight.nested_quant_map"] = second, levels
        state |= {"nested_blocksize": 4, "nested_offset": 1.5, "nested_dtype": "float32"}
    tensors[f"{STATE}{kind}"] = encoded(state)
    flat = table[codes[:count]] * absmax[torch.arange(count) // blocksize]
    return Stored(tensors, flat.reshape(shape))


def encoded(state: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def config4(kind: str = "nf4", **changes: Any) -> dict[str, Any]:
    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return {**stated, **changes}


def but_the_head(make: Callable[[Tensor], Stored]) -> Callable[[str, Tensor], Stored | None]:
    return lambda name, weight: None if name == "lm_head" else make(weight)


# rows that end with a block
WHOLE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "head_dim": 16,
}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("sizes", [WHOLE, {}], ids=["whole", "cut"])
@pytest.mark.parametrize("blocksize", [32, 64])
def test_every_4_bit_layout_is_read_bit_for_bit(
    tmp_path: Path, kind: str, double: bool, sizes: dict[str, Any], blocksize: int
) -> None:
    """Blocks run through all rows, so that rows of 48 and 80 end inside one."""

    def make(weight: Tensor) -> Stored:
        return four_bit(weight, kind, double=double, blocksize=blocksize)

    stated = config4(kind, bnb_4bit_use_double_quant=double)
    made = stored_folder(tmp_path, but_the_head(make), stated, num_hidden_layers=1, **sizes)
    for read in made.require_equal(Bitsandbytes).values():
        assert isinstance(read, Codebook4)
        assert isinstance(read.scales, Codebook8 if double and sizes else Dense)


@pytest.mark.parametrize("storage", [torch.int8, torch.bfloat16, torch.float16, torch.float32])
def test_codes_may_be_stored_as_if_they_were_of_another_dtype(
    tmp_path: Path, storage: torch.dtype
) -> None:
    def make(weight: Tensor) -> Stored:
        return four_bit(weight, storage=storage)

    stated = config4(bnb_4bit_quant_storage=str(storage).removeprefix("torch."))
    stored_folder(tmp_path, but_the_head(make), stated).require_equal(Bitsandbytes)


def test_rows_of_odd_length_share_bytes(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"intermediate_size": 33, "num_hidden_layers": 1}
    made = stored_folder(tmp_path, but_the_head(four_bit), config4(), **sizes)
    assert made.weights["model.layers.0.mlp.down_proj"].shape == (48, 33)
    made.require_equal(Bitsandbytes)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_logits_are_those_of_the_dequantized_weights(tmp_path: Path, family: str) -> None:
    """Biases (qwen2, gpt2), and matrices that plain files store transposed (gpt2)."""
    made = stored_folder(tmp_path, but_the_head(four_bit), config4(), family)
    made.require_logits(Bitsandbytes)


def test_the_file_says_which_matrices_are_quantized(tmp_path: Path) -> None:
    """A head that is, one matrix of three that is not, and a whole layer that is not."""

    def make(name: str, weight: Tensor) -> Stored | None:
        return None if name.endswith("k_proj") or ".layers.1." in name else four_bit(weight)

    skip = ["k_proj", "model.layers.1"]
    made = stored_folder(tmp_path, make, config4(llm_int8_skip_modules=skip))
    assert "lm_head" in made.weights
    made.require_equal(Bitsandbytes)
    made.require_logits(Bitsandbytes)


def test_a_file_with_bare_names_is_read(tmp_path: Path) -> None:
    """As base models are published, without the prefix of the model that has a head."""
    made = stored_folder(tmp_path, but_the_head(four_bit), config4())
    made.tensors = {name.removeprefix("model."): each for name, each in made.tensors.items()}
    made.save()
    made.require_equal(Bitsandbytes)


def test_kinds_are_known_before_weights_are_read(tmp_path: Path) -> None:
    stored_folder(tmp_path, but_the_head(four_bit), config4())
    spec, weights = open_quantized(tmp_path, Bitsandbytes)
    method = Bitsandbytes(config4())
    method.inspect({f"{LAYER}.weight.quant_state.bitsandbytes__nf4": (90,)})
    for linear in spec.linears():
        assert method.kind(linear) == weights.linear(linear.name).name


# --- 8 bits ----------------------------------------------------------------------------------

CONFIG8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def eight_bit(weight: Tensor) -> Stored:
    absmax = weight.abs().amax(1)
    codes = (weight * (127 / absmax[:, None])).round().to(torch.int8)
    layout = torch.tensor(0, dtype=torch.uint8)
    tensors = {"weight": codes, "SCB": absmax, "weight_format": layout}
    return Stored(tensors, codes * (absmax * (1 / 127))[:, None])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_8_bit_rows_are_read_bit_for_bit(tmp_path: Path, family: str) -> None:
    made = stored_folder(tmp_path, but_the_head(eight_bit), CONFIG8, family)
    for kind in made.require_equal(Bitsandbytes).values():
        assert isinstance(kind, IntGrouped)
    made.require_logits(Bitsandbytes)


def test_older_8_bit_files_do_not_name_their_layout(tmp_path: Path) -> None:
    made = stored_folder(tmp_path, but_the_head(eight_bit), CONFIG8)
    made.tensors = {n: t for n, t in made.tensors.items() if not n.endswith("weight_format")}
    made.save()
    made.require_equal(Bitsandbytes)


def test_layouts_of_one_device_are_refused(tmp_path: Path) -> None:
    made = stored_folder(tmp_path, but_the_head(eight_bit), CONFIG8)
    made.tensors[f"{LAYER}.weight_format"] += 2
    made.save()
    with pytest.raises(CheckpointError, match=r"weight_format is 2.*save it again, in rows"):
        made.kinds(Bitsandbytes)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (config4("int5"), "bnb_4bit_quant_type is 'int5'; served are nf4 and fp4"),
        (config4(bnb_4bit_quant_storage="int64"), "bnb_4bit_quant_storage is 'int64'"),
        (config4(llm_int8_skip_modules="lm_head"), "must be a list of module names"),
        ({"quant_method": "gptq"}, "by 'gptq' and not by bitsandbytes"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_file_is_opened(
    stated: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        Bitsandbytes(stated)


def test_configurations_are_told_apart() -> None:
    assert Bitsandbytes.detect(config4())
    assert Bitsandbytes.detect(CONFIG8)
    assert Bitsandbytes.detect({"load_in_8bit": True})  # before transformers named the method
    assert not Bitsandbytes.detect({})
    assert not Bitsandbytes.detect({"quant_method": "gptq"})


def state(made: StoredFolder, **changes: Any) -> Tensor:
    stored = made.tensors[f"{LAYER}.{STATE}nf4"]
    return encoded({**json.loads(bytes(stored.tolist())), **changes})


HARMS: list[tuple[str, Callable[[StoredFolder], Tensor | None], str]] = [
    ("weight", lambda m: m.tensors[f"{LAYER}.weight"][:-1], "of another shape: .*up_proj.weight"),
    ("weight.absmax", lambda m: torch.ones(59), r"absmax is float32\[59\] instead of .*\[60\]"),
    ("weight.absmax", lambda m: None, "missing: .*up_proj.weight.absmax"),
    ("weight.absmax", lambda m: torch.full((60,), torch.nan), "absmax holds infinities or NaN"),
    ("weight.quant_map", lambda m: torch.ones(15), "of another shape: .*quant_map"),
    ("weight.quant_map", lambda m: torch.ones(16).half(), "quant_map is float16"),
    (f"{STATE}nf4", lambda m: None, "missing: .*quant_state.bitsandbytes__nf4"),
    (f"{STATE}nf4", lambda m: torch.zeros(9, dtype=torch.uint8), "is not the JSON"),
    (f"{STATE}nf4", lambda m: encoded({"blocksize": 64}), "is not the JSON"),
    (f"{STATE}nf4", lambda m: state(m, shape=[48, 80]), r"needs nf4 of shape \[80, 48\]"),
    (f"{STATE}nf4", lambda m: state(m, quant_type="fp4"), "describes fp4"),
    (f"{STATE}nf4", lambda m: state(m, blocksize=0), "in blocks of 0"),
    (f"{STATE}nf4", lambda m: state(m, blocksize=128), r"absmax is float32\[60\] instead"),
]


@pytest.mark.parametrize(("suffix", "harm", "says"), HARMS)
def test_harm_to_a_4_bit_file_is_named(
    tmp_path: Path, suffix: str, harm: Callable[[StoredFolder], Tensor | None], says: str
) -> None:
    made = stored_folder(tmp_path, but_the_head(four_bit), config4(), num_hidden_layers=1)
    harmed = harm(made)
    del made.tensors[f"{LAYER}.{suffix}"]
    if harmed is not None:
        made.tensors[f"{LAYER}.{suffix}"] = harmed
    made.save()
    with pytest.raises(CheckpointError, match=says):
        made.kinds(Bitsandbytes)


@pytest.mark.parametrize(
    ("suffix", "harmed", "says"),
    [
        ("SCB", None, "missing: .*up_proj.SCB"),
        ("SCB", torch.ones(79), "of another shape: .*up_proj.SCB"),
        ("SCB", torch.full((80,), torch.inf), "SCB holds infinities"),
        ("weight", torch.zeros(80, 48), "up_proj.weight is float32"),
    ],
)
def test_harm_to_an_8_bit_file_is_named(
    tmp_path: Path, suffix: str, harmed: Tensor | None, says: str
) -> None:
    made = stored_folder(tmp_path, but_the_head(eight_bit), CONFIG8, num_hidden_layers=1)
    del made.tensors[f"{LAYER}.{suffix}"]
    if harmed is not None:
        made.tensors[f"{LAYER}.{suffix}"] = harmed
    made.save()
    with pytest.raises(CheckpointError, match=says):
        made.kinds(Bitsandbytes)
