"""Weight kinds: what every quantization format becomes at load, and what backends multiply.

A kind is a weight matrix W of logical shape [N, K] (out, in; y = x Wᵀ) in NumPy buffers with a
dtype tag, so that torch or JAX can wrap them without a copy and core needs neither.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Kind(ABC):
    """A weight matrix in one canonical packing; see each class for its buffers."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(N, K); stacked experts have a leading dimension."""

    @abstractmethod
    def slice_n(self, start: int, stop: int) -> Self:
        """Rows start:stop of W (output features): a column-parallel shard."""

    @abstractmethod
    def slice_k(self, start: int, stop: int) -> Self:
        """Columns start:stop of W (input features): a row-parallel shard."""

    @classmethod
    @abstractmethod
    def concat_n(cls, parts: "list[Self]") -> Self:
        """Join along the output features (q, k, v into one product)."""

    @abstractmethod
    def dequantize(self) -> NDArray[np.float32]:
        """The reference: W in float32."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all buffers."""


# dtype tag → the NumPy dtype that stores its bits
STORAGE: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float8_e4m3fn": np.uint8,
    "float8_e5m2": np.uint8,
    "float8_e8m0fnu": np.uint8,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
}


def to_float32(data: Array, dtype: str) -> NDArray[np.float32]:
    """Widen a tagged buffer to float32, exactly."""
    if dtype == "bfloat16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Dense(Kind):
    """An array as the checkpoint stores it; `dtype` tags bf16 and fp8, whose bits NumPy holds."""

    name = "dense"
    data: Array
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def slice_n(self, start: int, stop: int) -> "Dense":
        return Dense(self.data[..., start:stop, :], self.dtype)

    def slice_k(self, start: int, stop: int) -> "Dense":
        return Dense(self.data[..., start:stop], self.dtype)

    @classmethod
    def concat_n(cls, parts: "list[Dense]") -> "Dense":
        return Dense(np.concatenate([p.data for p in parts], axis=-2), parts[0].dtype)

    def dequantize(self) -> NDArray[np.float32]:
        return to_float32(self.data, self.dtype)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes
