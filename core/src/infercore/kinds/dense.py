"""The kind without quantization, which also carries the tagged buffers of the others."""

# pyright: reportIncompatibleMethodOverride=false
# (it takes Self in a parameter for the base class; mypy checks overrides)

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from infercore.kinds.base import Activation, Kind, common_activation
from infercore.kinds.dtypes import Array, to_float32


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Kind):
    """An array as the checkpoint stores it; `dtype` tags bf16 and fp8, whose bits NumPy holds."""

    name = "dense"
    data: Array
    dtype: str
    activation: Activation | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def slice_n(self, start: int, stop: int) -> Self:
        return replace(self, data=self.data[..., start:stop, :])

    def slice_k(self, start: int, stop: int) -> Self:
        return replace(self, data=self.data[..., start:stop])

    @classmethod
    def concat_n(cls, parts: Sequence[Self]) -> Self:
        return cls.concat(parts, axis=-2)

    @classmethod
    def concat(cls, parts: Sequence[Self], axis: int) -> Self:
        """Join along any axis; dtypes that differ become float32, which holds them exactly."""
        activation = common_activation(parts)
        arrays, dtype = _alike(parts)
        return cls(np.concatenate(arrays, axis=axis), dtype, activation)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        activation = common_activation(parts)
        arrays, dtype = _alike(parts)
        return cls(np.stack(arrays), dtype, activation)

    def unstack(self) -> list[Self]:
        return [replace(self, data=data) for data in self.data]

    def dequantize(self) -> NDArray[np.float32]:
        return to_float32(self.data, self.dtype)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def _alike(parts: Sequence[Dense]) -> tuple[list[Array], str]:
    """The parts' arrays in one dtype, and its tag."""
    if len({part.dtype for part in parts}) == 1:
        return [part.data for part in parts], parts[0].dtype
    return [part.dequantize() for part in parts], "float32"
