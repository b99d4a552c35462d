"""Small checkpoints in any format, tensor by tensor in torch's dtypes, beside their matrices."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from infercore.kinds import Kind
from infercore.quantization import QuantizationMethod
from reference_logits import logits, open_quantized, run
from tiny_models import make_tiny

LAYER = "model.layers.0.mlp.up_proj"  # 80 outputs of 48 inputs, unless a test asks for others


@dataclass(frozen=True)
class Stored:
    """A quantized matrix: its tensors by suffix, and the float32[N, K] that they mean."""

    tensors: dict[str, Tensor]
    weight: Tensor


@dataclass
class StoredFolder:
    """A model folder with quantized matrices; `weights` are what they mean, `oracle` uses them."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]
    oracle: Any

    def save(self) -> None:
        whole = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in self.tensors.items()
        }
        save_file(whole, self.path / "model.safetensors")
        settings = json.loads((self.path / "config.json").read_text())
        settings["quantization_config"] = self.config
        (self.path / "config.json").write_text(json.dumps(settings))

    def kinds(self, method: type[QuantizationMethod]) -> dict[str, Kind]:
        """Every quantized matrix, as `method` reads it."""
        _, weights = open_quantized(self.path, method)
        return {name: weights.linear(name) for name in self.weights}

    def require_equal(self, method: type[QuantizationMethod]) -> dict[str, Kind]:
        """`kinds`, once all are what they should be, bit for bit."""
        kinds = self.kinds(method)
        for name, kind in kinds.items():
            np.testing.assert_array_equal(kind.dequantize(), self.weights[name])
        return kinds

    def require_logits(self, method: type[QuantizationMethod]) -> None:
        ids = [3, 17, 29, 101, 44]
        expected = self.oracle(torch.tensor([ids])).logits[0]
        found = logits(run(*open_quantized(self.path, method)), ids)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def stored_folder(
    path: Path,
    make: Callable[[str, Tensor], Stored | None],
    config: dict[str, Any],
    family: str = "llama",
    **overrides: Any,
) -> StoredFolder:
    """A tiny model whose matrices [N, K] `make` may quantize; it gets name and weights."""
    oracle = make_tiny(path, family, **overrides)
    tensors = load_file(path / "model.safetensors")
    weights = {}
    for name, module in oracle.named_modules():
        conv = "Conv1D" in type(module).__name__
        if f"{name}.weight" not in tensors or not (conv or isinstance(module, torch.nn.Linear)):
            continue
        weight = tensors[f"{name}.weight"]
        stored = make(name, weight.T.contiguous() if conv else weight)
        if stored is None:
            continue
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in stored.tensors.items()}
        weights[name] = stored.weight.float().numpy()
        module.weight.data.copy_(stored.weight.T if conv else stored.weight)
    folder = StoredFolder(path, tensors, config, weights, oracle.requires_grad_(False))
    folder.save()
    return folder
