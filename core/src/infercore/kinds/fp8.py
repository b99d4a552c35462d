"""8-bit floats with a scale per tensor, per output channel, or per block of [N, K]."""

# pyright: reportIncompatibleMethodOverride=false
# (it takes Self in a parameter for the base class; mypy checks overrides)

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from infercore.errors import UnsupportedModel
from infercore.kinds.base import (
    Activation,
    Kind,
    check_buffers,
    check_range,
    common_activation,
    scaled,
)
from infercore.kinds.blocks import Blocks
from infercore.kinds.cells import UInt8
from infercore.kinds.dense import Dense
from infercore.kinds.dtypes import to_float32

DTYPES = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True, eq=False)
class Fp8(Kind):
    """W[n, k] = codes[n, k] · scales[rows.index()[n], columns.index()[k]].

    dtype: "float8_e4m3fn" or "float8_e5m2". codes: uint8[N, K], the raw bits.
    rows, columns: how N and K fall into blocks; the last blocks may be short, and the first too
        after a slice. `scales` tells the cases apart: [1, 1] per tensor, [N, 1] per channel.
    scales: [rows.count, columns.count], float32, bfloat16 or float8_e8m0fnu; W is the product,
        also where a checkpoint calls them inverse.
    A stack has E before codes and scales. Raises UnsupportedModel where dtypes differ.
    """

    name = "fp8"
    dtype: str
    codes: UInt8
    scales: Dense
    rows: Blocks
    columns: Blocks
    activation: Activation | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UnsupportedModel(
                f"weights in {self.dtype} cannot be served as fp8; "
                f"quantize the model to one of {', '.join(DTYPES)}"
            )
        experts = self.shape[:-2]
        check_buffers(
            self,
            codes=(self.codes, "uint8", (*experts, self.rows.length, self.columns.length)),
            scales=(self.scales, "", (*experts, self.rows.count, self.columns.count)),
        )

    @classmethod
    def from_scales(
        cls,
        dtype: str,
        codes: UInt8,
        scales: Dense,
        block: tuple[int, int] | None = None,
        activation: Activation | None = None,
    ) -> Self:
        """A matrix as checkpoints store it: one scale, one per row, or one per block.

        scales: of any shape, [], [1], [N], [N, 1]; for blocks [ceil(N / bn), ceil(K / bk)].
        """
        n, k = codes.shape[-2:]
        if block is None:
            block = (n, k) if scales.data.size == 1 else (1, k)
        rows, columns = Blocks(n, block[0]), Blocks(k, block[1])
        data = scales.data.reshape(rows.count, columns.count)
        return cls(dtype, codes, Dense(data, scales.dtype), rows, columns, activation)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def slice_n(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-2])
        rows, kept = self.rows.cut(start, stop)
        return replace(
            self,
            codes=self.codes[..., start:stop, :],
            scales=self.scales.slice_n(kept.start, kept.stop),
            rows=rows,
        )

    def slice_k(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-1])
        columns, kept = self.columns.cut(start, stop)
        return replace(
            self,
            codes=self.codes[..., start:stop],
            scales=self.scales.slice_k(kept.start, kept.stop),
            columns=columns,
        )

    @classmethod
    def concat_n(cls, parts: Sequence[Self]) -> Self:
        """Blocks that do not meet are split, so three per-tensor scales become one per block."""
        activation = _check_alike(parts)
        rows = Blocks.joined([part.rows for part in parts])
        columns = Blocks.common([part.columns for part in parts])
        scales = [_refined(p, own, columns) for p, own in zip(parts, rows, strict=True)]
        return cls(
            parts[0].dtype,
            np.concatenate([part.codes for part in parts], axis=-2),
            Dense.concat_n(scales),
            replace(rows[0], length=sum(own.length for own in rows)),
            columns,
            activation,
        )

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        activation = _check_alike(parts)
        rows = Blocks.common([part.rows for part in parts])
        columns = Blocks.common([part.columns for part in parts])
        scales = Dense.stack([_refined(part, rows, columns) for part in parts])
        codes = np.stack([part.codes for part in parts])
        return cls(parts[0].dtype, codes, scales, rows, columns, activation)

    def unstack(self) -> list[Self]:
        experts = zip(self.codes, self.scales.unstack(), strict=True)
        return [replace(self, codes=codes, scales=scales) for codes, scales in experts]

    def dequantize(self) -> NDArray[np.float32]:
        scales = np.take(self.scales.dequantize(), self.rows.index(), axis=-2)
        scales = np.take(scales, self.columns.index(), axis=-1)
        return scaled(to_float32(self.codes, self.dtype), scales)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def _refined(part: Fp8, rows: Blocks, columns: Blocks) -> Dense:
    """The part's scales, repeated over finer blocks."""
    data = part.scales.data[..., part.rows.refine(rows), :]
    return replace(part.scales, data=data[..., part.columns.refine(columns)])


def _check_alike(parts: Sequence[Fp8]) -> Activation | None:
    activation = common_activation(parts)
    dtypes = sorted({part.dtype for part in parts})
    if len(dtypes) > 1:
        raise UnsupportedModel(
            f"weights in {' and '.join(dtypes)} cannot be joined into one product; "
            "multiply them apart, or quantize the whole model to one of them"
        )
    return activation
