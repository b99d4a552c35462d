"""compressed-tensors: what is refused, and how harm to a file is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressed_files import config, folder, scheme
from infercore.errors import CheckpointError, UnsupportedModel
from infercore_quantization.compressed_tensors import CompressedTensors
from stored_folders import LAYER


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"quant_method": "gptq"}, "says nothing of compressed-tensors"),
        ({}, "says nothing of compressed-tensors"),
        (config(scheme(), config_groups={}), "config_groups is {}"),
        (config(scheme(), config_groups={"W8A8": ["Linear"]}), "W8A8 is .*must be an object"),
        (config(scheme(), "marlin-24"), "format is 'marlin-24'; served are pack-quantized"),
        (config(scheme(), "nvfp4-pack-quantized"), "nvfp4-pack-quantized holds other numbers"),
        (config(scheme(), "mxfp6-pack-quantized"), "format is 'mxfp6-pack-quantized'"),
        (config(scheme(), "dense"), "format is 'dense'"),
        (config(scheme("int", 5)), "num_bits is 5; of pack-quantized, 2, 3, 4, 8 are served"),
        (config(scheme("float", 4), "float-quantized"), "num_bits is 4; of float-quantized, 8 are"),
        (config(scheme("float", 8)), "type is 'float'; pack-quantized holds other numbers"),
        (config(scheme("odd", 8)), "type is 'odd'"),
        (config(scheme("float", 8, symmetric=False), "float-quantized"), "have no zero points"),
        (config(scheme(strategy="tensor_group")), "strategy is 'tensor_group'"),
        (config(scheme(group_size=0)), "group_size is 0"),
        (config(scheme(strategy="block")), "block_structure is None"),
        (config(scheme(strategy="block", block_structure="ax4")), "must be two positive integers"),
        (config(scheme(strategy="block", block_structure=[0, 4])), "must be two positive integers"),
        (config(scheme(dynamic=True)), "dynamic is True"),
        (config(scheme(), ignore="lm_head"), "must be a list of module names"),
        (config(scheme(), sparsity_config={"format": "sparse-24-bitmask"}), "weights are sparse"),
        (config(scheme(), transform_config={"config_groups": {"R1": {}}}), "are rotated"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_file_is_opened(
    stated: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        CompressedTensors(stated)


HARMS: list[tuple[dict[str, Any], str, str, Callable[[Tensor], Tensor | None], str]] = [
    (scheme(), "pack-quantized", "weight_packed", lambda t: None, "missing: .*weight_packed"),
    (scheme(), "pack-quantized", "weight_packed", lambda t: t[:-1], "another shape: .*_packed"),
    (scheme(), "pack-quantized", "weight_packed", lambda t: t.float(), "_packed is float32"),
    (scheme(), "pack-quantized", "weight_shape", lambda t: t.flip(0), r"\[48, 80\] and the model"),
    (scheme(), "pack-quantized", "weight_scale", lambda t: None, "missing: .*weight_scale"),
    (scheme(), "pack-quantized", "weight_scale", lambda t: t[:, :2], r"_scale \(80, 2\) instead"),
    (scheme(), "pack-quantized", "weight_scale", lambda t: t * torch.inf, "holds infinities"),
    (
        scheme(symmetric=False),
        "pack-quantized",
        "weight_zero_point",
        lambda t: None,
        "missing: .*weight_zero_point",
    ),
    (
        scheme(symmetric=False),
        "pack-quantized",
        "weight_zero_point",
        lambda t: t[:-1],
        r"weight_zero_point \(9, 3\) instead of \(10, 3\)",
    ),
    (
        scheme(symmetric=False),
        "int-quantized",
        "weight_zero_point",
        lambda t: t + 16,
        "weight_zero_point leaves the range of 4 bits",
    ),
    (scheme(), "int-quantized", "weight", lambda t: t + 16, "holds values beyond 4 bits"),
    (scheme(), "int-quantized", "weight", lambda t: t.half(), "up_proj.weight is float16"),
    (scheme("float", 8), "float-quantized", "weight", lambda t: t.half(), "weight is float16"),
]


@pytest.mark.parametrize(("weights", "form", "suffix", "harm", "says"), HARMS)
def test_harm_to_a_file_is_named(
    tmp_path: Path,
    weights: dict[str, Any],
    form: str,
    suffix: str,
    harm: Callable[[Tensor], Tensor | None],
    says: str,
) -> None:
    made = folder(tmp_path, config(weights, form))
    harmed = harm(made.tensors.pop(f"{LAYER}.{suffix}"))
    if harmed is not None:
        made.tensors[f"{LAYER}.{suffix}"] = harmed
    made.save()
    with pytest.raises(CheckpointError, match=says):
        made.kinds(CompressedTensors)
