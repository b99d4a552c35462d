"""Packed on the CPU, codes of 4 and 8 bits take at most 5 % more than in the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from infercore_cpu.linear import native_linear
from infercore_cpu.native import library
from infercore_quantization.produce.opening import open_model
from packed_files import Packed, awq, gptq, packed_folder
from reference_logits import checkpoint

MOST = 1.05


def growth(path: Path) -> float:
    """Bytes of all quantized matrices, packed, per byte of the same layers in the file."""
    lib = library()
    if lib is None:
        pytest.skip("this installation has no native kernels")
    opened = open_model(str(path))
    sizes = {
        name: tensor.nbytes
        for file in path.glob("model*.safetensors")
        for name, tensor in load_file(file).items()
    }
    stored = packed = 0
    for linear in opened.spec.linears():
        if linear.name == opened.spec.head.name:
            continue
        stored += sum(size for name, size in sizes.items() if name.startswith(f"{linear.name}."))
        packed += native_linear(lib, opened.weights.linear(linear.name), "bfloat16").nbytes
    return packed / stored


@pytest.mark.parametrize(
    "name", ["gptq", "gptq-desc-act-g32-asym", "awq", "bnb-int8", "compressed-tensors"]
)
def test_tools_files_grow_by_at_most_5_percent(name: str) -> None:
    assert growth(checkpoint(name)) <= MOST


@pytest.mark.parametrize("make", [gptq, awq])
def test_groups_of_32_do_as_well(tmp_path: Path, make: Callable[..., Packed]) -> None:
    """The most scales and zero points per weight that the tools write."""
    rng = np.random.default_rng(3)
    config = {"quant_method": make.__name__, "bits": 4, "group_size": 32}
    packed_folder(
        tmp_path,
        lambda name, n, k: None if name == "lm_head" else make(rng, n, k),
        {**config, "sym": False, "desc_act": False, "zero_point": True, "version": "gemm"},
        hidden_size=192,
        intermediate_size=384,
    )
    assert growth(tmp_path) <= MOST
