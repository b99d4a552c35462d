"""Small checkpoints in the layouts of compressed-tensors, beside the matrices that they mean."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infercore.kinds import E2M1
from packed_files import streams
from stored_folders import Stored, StoredFolder, stored_folder


def scheme(kind: str = "int", bits: int = 4, **changes: Any) -> dict[str, Any]:
    stated = {"num_bits": bits, "type": kind, "strategy": "group", "group_size": 16}
    return {**stated, "symmetric": True, "dynamic": False, **changes}


def config(
    weights: dict[str, Any] | None, form: str = "pack-quantized", **changes: Any
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    groups = {"group_0": group}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
        **changes,
    }


def grid(n: int, k: int, weights: dict[str, Any]) -> tuple[int, int]:
    """(rows, columns) that share a scale."""
    by_strategy = {
        "tensor": (n, k),
        "channel": (1, k),
        "group": (1, weights.get("group_size") or k),
        "block": tuple(weights.get("block_structure") or (n, k)),
    }
    rows, columns = by_strategy[weights["strategy"]]
    return rows, columns


def spread(values: Tensor, n: int, k: int, weights: dict[str, Any]) -> Tensor:
    """A number for each weight, of numbers on the scheme's grid."""
    rows, columns = grid(n, k, weights)
    return values.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]


def compressed(
    weight: Tensor, weights: dict[str, Any], form: str, *, g_idx: bool = False
) -> Stored:
    """Random codes, scales and zero points, and what follows from them."""
    (n, k), bits = weight.shape, weights["num_bits"]
    rows, columns = grid(n, k, weights)
    shape = (-(-n // rows), -(-k // columns))
    generator = torch.Generator().manual_seed(n * k)
    scales = 2 * k**-0.5 / 2**bits * (0.5 + torch.rand(shape, generator=generator))
    full = spread(scales, n, k, weights)
    stored = scales.reshape(-1) if weights["strategy"] == "tensor" else scales
    if weights["type"] == "float":
        codes = (weight / full).clamp(-448, 448).to(torch.float8_e4m3fn)
        return Stored({"weight": codes, "weight_scale": stored}, codes.float() * full)
    middle = 1 << (bits - 1)
    values = torch.randint(-middle, middle, (n, k), generator=generator)
    zeros = torch.randint(-middle, middle, shape, generator=generator)
    zeros = torch.zeros_like(zeros) if weights["symmetric"] else zeros
    tensors = {"weight_scale": stored}
    group_of = torch.arange(k) // columns
    if g_idx:
        group_of = group_of[torch.randperm(k, generator=generator)]
        tensors["weight_g_idx"] = group_of.int()
        full = scales[:, group_of]
    if form == "pack-quantized":
        tensors["weight_packed"] = torch.from_numpy(streams((values + middle).numpy(), bits))
        tensors["weight_shape"] = torch.tensor([n, k])
        if not weights["symmetric"]:
            packed = streams((zeros + middle).T.numpy(), bits).T
            tensors["weight_zero_point"] = torch.from_numpy(np.ascontiguousarray(packed))
            if weights["strategy"] == "tensor":  # the one that the tool does not pack
                tensors["weight_zero_point"] = zeros.reshape(-1).to(torch.int8)
    else:
        tensors["weight"] = values.to(torch.int8)
        if not weights["symmetric"]:
            tensors["weight_zero_point"] = zeros.reshape(stored.shape).to(torch.int8)
    shift = zeros[:, group_of] if g_idx else spread(zeros, n, k, weights)
    return Stored(tensors, (values - shift).float() * full)


def folder(
    path: Path, stated: dict[str, Any], family: str = "llama", **options: Any
) -> StoredFolder:
    group = stated["config_groups"]["group_0"]

    def quantize(name: str, weight: Tensor) -> Stored | None:
        if name == "lm_head":
            return None
        return compressed(weight, group["weights"], stated["format"], **options)

    return stored_folder(path, quantize, stated, family)


def four_bit_floats(weight: Tensor, form: str) -> Stored:
    """Codes of E2M1, two a byte, the first in the low half; scales of 32 or of 16 weights."""
    (n, k), size = weight.shape, 32 if form.startswith("mx") else 16
    generator = torch.Generator().manual_seed(n * k)
    codes = torch.randint(0, 16, (n, k), generator=generator)
    grid = (n, -(-k // size))
    tensors = {"weight_packed": (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)}
    if form.startswith("mx"):
        tensors["weight_scale"] = torch.randint(119, 123, grid, generator=generator).byte()
        scales = torch.exp2(tensors["weight_scale"].float() - 127)
    else:
        stored = (1 + torch.rand(grid, generator=generator)).to(torch.float8_e4m3fn)
        tensors["weight_scale"], tensors["weight_global_scale"] = stored, torch.tensor([64.0])
        scales = stored.float() / 64
    full = scales.repeat_interleave(size, 1)[:, :k]
    return Stored(tensors, torch.from_numpy(E2M1.copy())[codes] * full)


def config4(form: str) -> dict[str, Any]:
    by_form: dict[str, dict[str, Any]] = {
        "mxfp4-pack-quantized": {"group_size": 32},
        "nvfp4-pack-quantized": {"strategy": "tensor_group"},
    }
    return config(scheme("float", 4, **by_form[form]), form)
