"""A checkpoint some of whose matrices and tensors were replaced."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from infercore.executor import Weights
from infercore.kinds import Dense, Kind
from infercore.layers.common import torch_dtype


class Overlay:
    """`Weights` over others: what was put in here wins."""

    def __init__(self, below: Weights) -> None:
        self._below = below
        self.kinds: dict[str, Kind] = {}
        self.tensors: dict[str, Dense] = {}

    def linear(self, name: str) -> Kind:
        return self.kinds[name] if name in self.kinds else self._below.linear(name)

    def tensor(self, name: str) -> Dense:
        return self.tensors[name] if name in self.tensors else self._below.tensor(name)

    def matrix(self, name: str) -> Tensor:
        """The linear layer `name` as float32 [N, K], a copy."""
        return torch.from_numpy(np.ascontiguousarray(self.linear(name).dequantize()))

    def values(self, name: str) -> Tensor:
        """Any other tensor in float32, a copy."""
        return torch.from_numpy(self.tensor(name).dequantize())

    def put_values(self, name: str, values: Tensor) -> None:
        """Replace a tensor, rounded to the dtype in which the checkpoint has it."""
        self.tensors[name] = dense(values, self.tensor(name).dtype)

    def put_kinds(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds.update(kinds)


def dense(values: Tensor, dtype: str) -> Dense:
    """A tensor as a checkpoint's, in that dtype: float32, float16 or bfloat16."""
    rounded = values.to(torch_dtype(dtype)).contiguous()
    if dtype == "bfloat16":
        return Dense(rounded.view(torch.int16).numpy().view(np.uint16), dtype)
    return Dense(rounded.numpy(), dtype)
