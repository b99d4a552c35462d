"""What every kind can do, and how its layer's input may be rounded."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from infercore.errors import UnsupportedModel
from infercore.kinds.dtypes import Array

ACTIVATION_DTYPES = ("int8", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class Activation:
    """How the checkpoint's maker had this layer's input x rounded before the product.

    dtype: "int8" or an fp8 tag. scale: x ≈ q · scale with one scale for all tokens (static);
    None = each token has its own, from its largest entry (dynamic). Float32 compute rounds nothing.
    Raises UnsupportedModel.
    """

    dtype: str
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ACTIVATION_DTYPES:
            raise UnsupportedModel(
                f"activations in {self.dtype} cannot be served; "
                f"quantize the model to one of {', '.join(ACTIVATION_DTYPES)}"
            )
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise UnsupportedModel(
                f"a static activation scale is a positive number, not {self.scale}; "
                "quantize the model again, or with dynamic activations"
            )


class Kind(ABC):
    """A weight matrix in one canonical packing; see each class for its buffers.

    Kinds are never changed in place: what an operation returns may share buffers with its source.
    Ranges are 0 ≤ start < stop ≤ N or K. Every operation also serves stacked experts, [E, N, K].
    """

    name: ClassVar[str]
    activation: Activation | None  # how the input is rounded; None = not at all

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
    def concat_n(cls, parts: Sequence[Self]) -> Self:
        """Join along the output features (q, k, v into one product).

        Exact also if groups, blocks, maps or scale dtypes differ. Raises UnsupportedModel if
        the parts are of different kinds, or round activations differently.
        """

    @classmethod
    @abstractmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Experts [N, K], all of one shape, as one kind [E, N, K]. Raises like `concat_n`."""

    @abstractmethod
    def unstack(self) -> list[Self]:
        """The experts of a stack, each [N, K]."""

    @abstractmethod
    def dequantize(self) -> NDArray[np.float32]:
        """The reference: W in float32."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all buffers."""


def common_activation(parts: Sequence[Kind]) -> Activation | None:
    """The activation that all parts share. Raises UnsupportedModel if they cannot be one kind."""
    names = sorted({part.name for part in parts})
    if len(names) > 1:
        raise UnsupportedModel(
            f"weights of kinds {' and '.join(names)} cannot be joined into one product; "
            "multiply them apart, or dequantize them first"
        )
    activations = {part.activation for part in parts}
    if len(activations) > 1:
        shown = " and ".join(sorted(str(activation) for activation in activations))
        raise UnsupportedModel(
            f"weights whose inputs are rounded differently ({shown}) cannot be joined into one "
            "product; multiply them apart, or quantize the model with one activation scheme"
        )
    return parts[0].activation


def check_range(start: int, stop: int, size: int) -> None:
    """Ranges are computed by core and backends, never taken from input."""
    assert 0 <= start < stop <= size, f"{start}:{stop} of {size}"


def check_buffers(kind: Kind, **buffers: tuple[Array | Kind, str, tuple[int, ...]]) -> None:
    """Refuse buffers that a format plugin did not make as the kind's docstring says.

    buffers: (the buffer, the dtype that it must have or "" for any, the shape that it must have).
    """
    for what, (buffer, dtype, shape) in buffers.items():
        found = str(buffer.dtype) if dtype and isinstance(buffer, np.ndarray) else dtype
        if found != dtype or buffer.shape != shape:
            raise ValueError(
                f"{what} of {kind.name}: {found}{list(buffer.shape)} instead of "
                f"{dtype}{list(shape)}; the plugin that reads this format must be corrected"
            )


def scaled(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """values · scales, into values. Infinities and NaNs of a checkpoint pass through in silence."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.multiply(values, scales, out=values)
