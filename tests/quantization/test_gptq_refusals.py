"""GPTQ files and configurations that are refused, each with its reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infercore.errors import CheckpointError, ConfigError, UnsupportedModel
from infercore_quantization.gptq import Gptq
from packed_files import gptq, gptq_config, gptq_folder, require_equal
from reference_logits import open_quantized


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 5}, "bits is 5; served are 2, 3, 4, 8"),
        ({"bits": None}, "lacks bits"),
        ({"group_size": None}, "lacks group_size"),
        ({"group_size": 0}, "group_size is 0; it must be a positive integer, or -1"),
        ({"sym": "yes"}, "it must be true or false"),
        ({"pack_dtype": "int128"}, "pack_dtype is 'int128'"),
        ({"checkpoint_format": "marlin"}, r"format 'marlin' is not read.*GPTQModel"),
        ({"is_marlin_format": True}, r"format 'marlin' is not read.*GPTQModel"),
        ({"quant_method": "marlin"}, r"format 'marlin' is not read.*--quantize int4"),
        ({"quant_method": "exl2"}, r"format 'exl2' is not read.*GPTQModel"),
        ({"checkpoint_format": "odd"}, "that are read are gptq, gptq_v2"),
        ({"dynamic": {"+:(": {"bits": 8}}}, "no regular expression"),
        ({"dynamic": {"+:a": {"bits": 7}}}, "bits is 7"),
        ({"dynamic": ["a"]}, "dynamic is"),
        ({"dynamic": {"a": {"format": "gptq_v2"}}}, "format of some layers is 'gptq_v2'"),
        ({"rotation": "hadamard"}, "expect inputs that are rotated at run time"),
        ({"quant_method": "auto-round", "data_type": "mx_fp"}, "AutoRound's packing_format"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_file_is_opened(
    changes: dict[str, Any], says: str
) -> None:
    stated = gptq_config(**changes)
    assert Gptq.detect(stated)
    with pytest.raises(UnsupportedModel, match=says):
        Gptq(stated)


@pytest.mark.parametrize(("suffix", "says"), [("B", "marlin"), ("q_weight", "exl2")])
def test_files_of_kindred_formats_are_told_by_their_tensors(suffix: str, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"'{says}' is not read"):
        Gptq(gptq_config()).inspect({f"model.layers.0.mlp.up_proj.{suffix}": (4, 4)})


def test_a_plain_checkpoint_is_not_gptq() -> None:
    with pytest.raises(UnsupportedModel, match="no matrix of the checkpoint is packed"):
        Gptq({}).inspect({"model.layers.0.mlp.up_proj.weight": (4, 4)})


LAYER = "model.layers.0.mlp.up_proj"  # 80 outputs of 48 inputs, in groups of 32


def cut(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array[:-1])


@pytest.mark.parametrize(
    ("suffix", "harm", "says"),
    [
        ("scales", cut, r"up_proj.scales has the shape \[1, 80\].*would be \[2, 80\]"),
        ("qweight", cut, "of another shape: .*up_proj.qweight"),
        ("qzeros", cut, "of another shape: .*up_proj.qzeros"),
        ("g_idx", cut, "of another shape: .*up_proj.g_idx"),
        ("qweight", lambda a: a.view(np.float32), "up_proj.qweight is float32"),
        ("qzeros", lambda a: a.view(np.float32), "up_proj.qzeros is float32"),
        ("scales", lambda a: a.view(np.int16), "up_proj.scales is int16"),
        ("scales", lambda a: a * np.float16(np.inf), "up_proj.scales holds infinities"),
        ("g_idx", lambda a: a - 1, "does not put the 48 inputs into 2 groups"),
        ("g_idx", lambda a: a + 1, "does not put the 48 inputs into 2 groups"),
        ("g_idx", lambda a: a * 0 + 1, "does not put the 48 inputs into 2 groups of at most 32"),
    ],
)
def test_harm_to_a_file_is_named(tmp_path: Path, suffix: str, harm: Any, says: str) -> None:
    made = gptq_folder(tmp_path)
    made.tensors[f"{LAYER}.{suffix}"] = harm(made.tensors[f"{LAYER}.{suffix}"])
    made.save()
    with pytest.raises(CheckpointError, match=says):
        require_equal(made, Gptq)


@pytest.mark.parametrize("suffix", ["qzeros", "scales"])
def test_a_missing_tensor_is_named(tmp_path: Path, suffix: str) -> None:
    made = gptq_folder(tmp_path)
    del made.tensors[f"{LAYER}.{suffix}"]
    made.save()
    with pytest.raises(CheckpointError, match=f"missing: {LAYER}.{suffix}"):
        open_quantized(tmp_path, Gptq)


def test_a_layer_that_is_not_there_is_missed_as_packed(tmp_path: Path) -> None:
    made = gptq_folder(tmp_path)
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        del made.tensors[f"{LAYER}.{suffix}"]
    made.save()
    with pytest.raises(CheckpointError, match=f"missing: {LAYER}.qweight"):
        open_quantized(tmp_path, Gptq)


def test_act_order_needs_its_map(tmp_path: Path) -> None:
    made = gptq_folder(tmp_path, desc_act=True)
    del made.tensors[f"{LAYER}.g_idx"]
    made.save()
    with pytest.raises(CheckpointError, match=f"missing: {LAYER}.g_idx"):
        open_quantized(tmp_path, Gptq)


@pytest.mark.parametrize(
    ("written", "stated", "says"),
    [
        ({"group_size": 16}, {"group_size": 64}, r"with group_size 64 it would be \[1, 48\]"),
        ({"bits": 8}, {"bits": 4}, "of another shape: .*qweight"),
        ({"sym": True}, {"checkpoint_format": "gptq_v2"}, "from 7 to 7.*has 8 alone"),
        ({"sym": True, "checkpoint_format": "gptq_v2"}, {"checkpoint_format": "gptq"}, "9 to 9"),
        ({"sym": False}, {"sym": True}, "zero points from .* symmetric 4-bit layer has 8 alone"),
    ],
)
def test_a_configuration_of_other_weights_is_named(
    tmp_path: Path, written: dict[str, Any], stated: dict[str, Any], says: str
) -> None:
    made = gptq_folder(tmp_path, **written)
    made.config |= stated
    made.save()
    with pytest.raises(CheckpointError, match=says):
        require_equal(made, Gptq)


def test_a_quantized_head_is_not_the_embeddings(tmp_path: Path) -> None:
    made = gptq_folder(tmp_path)
    head = gptq(np.random.default_rng(5), 160, 48)
    made.tensors |= {f"lm_head.{suffix}": array for suffix, array in head.tensors.items()}
    made.save()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match="set tie_word_embeddings to false"):
        open_quantized(tmp_path, Gptq)
