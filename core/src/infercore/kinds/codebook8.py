"""8-bit codes into a table of 256, in blocks across rows: NF4's doubly quantized scales."""

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
from infercore.kinds.cells import UInt8

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Codebook8(Kind):
    """W[n, k] = table[codes[n, k]] · absmax[(row_start[n] + k) // block_size] + offsets[n].

    This is how bitsandbytes quantizes the scales of NF4 once more (Dettmers et al. 2023, QLoRA):
    blocks of 256 scales, counted through all rows. `row_start` keeps that count when rows and
    columns are cut away.
    codes: uint8[N, K]. table: float32[256].
    absmax: float32[G], one per block. offsets: float32[N], the mean that was taken off.
    row_start: int32[N], position of the row's first entry, counted from the start of absmax[0].
    A stack has E before all but the table; experts of fewer blocks are filled up with unused ones.
    Raises UnsupportedModel where tables or block sizes differ.
    """

    name = "codebook8"
    codes: UInt8
    table: Float32
    absmax: Float32
    offsets: Float32
    row_start: Int32
    block_size: int = 256
    activation: Activation | None = None

    def __post_init__(self) -> None:
        rows = self.shape[:-1]
        check_buffers(
            self,
            codes=(self.codes, "uint8", self.shape),
            table=(self.table, "float32", (256,)),
            absmax=(self.absmax, "float32", (*rows[:-1], self.absmax.shape[-1])),
            offsets=(self.offsets, "float32", rows),
            row_start=(self.row_start, "int32", rows),
        )

    @classmethod
    def from_flat(
        cls, codes: UInt8, table: Float32, absmax: Float32, offset: float, block_size: int = 256
    ) -> Self:
        """codes uint8[N, K], quantized row after row; one offset for all, as in a checkpoint."""
        n, k = codes.shape
        offsets = np.full(n, offset, np.float32)
        return cls(codes, table, absmax, offsets, np.arange(n, dtype=np.int32) * k, block_size)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def slice_n(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-2])
        if len(self.shape) == 3:
            return self.stack([expert.slice_n(start, stop) for expert in self.unstack()])
        rows = slice(start, stop)
        return self._compacted(self.codes[rows], self.offsets[rows], self.row_start[rows])

    def slice_k(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-1])
        if len(self.shape) == 3:
            return self.stack([expert.slice_k(start, stop) for expert in self.unstack()])
        row_start = self.row_start + np.int32(start)
        return self._compacted(self.codes[:, start:stop], self.offsets, row_start)

    def _compacted(self, codes: UInt8, offsets: Float32, row_start: Int32) -> Self:
        """A part of this matrix, without the blocks that no entry uses any more."""
        used = np.unique(_block_of_entry(row_start, codes.shape[-1], self.block_size))
        # a row's blocks are neighbours, all used, and stay neighbours
        block = np.searchsorted(used, row_start // self.block_size)
        row_start = (block * self.block_size + row_start % self.block_size).astype(np.int32)
        return replace(
            self, codes=codes, absmax=self.absmax[used], offsets=offsets, row_start=row_start
        )

    @classmethod
    def concat_n(cls, parts: Sequence[Self]) -> Self:
        _check_alike(parts)
        if len(parts[0].shape) == 3:
            experts = zip(*(part.unstack() for part in parts), strict=True)
            return cls.stack([cls.concat_n(expert) for expert in experts])
        size = parts[0].block_size
        first = np.cumsum([0, *(len(part.absmax) for part in parts[:-1])]) * size
        starts = [p.row_start + np.int32(base) for p, base in zip(parts, first, strict=True)]
        return replace(
            parts[0],
            codes=np.concatenate([part.codes for part in parts]),
            absmax=np.concatenate([part.absmax for part in parts]),
            offsets=np.concatenate([part.offsets for part in parts]),
            row_start=np.concatenate(starts),
        )

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        _check_alike(parts)
        blocks = max(len(part.absmax) for part in parts)
        return replace(
            parts[0],
            codes=np.stack([part.codes for part in parts]),
            absmax=np.stack([np.pad(p.absmax, (0, blocks - len(p.absmax))) for p in parts]),
            offsets=np.stack([part.offsets for part in parts]),
            row_start=np.stack([part.row_start for part in parts]),
        )

    def unstack(self) -> list[Self]:
        experts = zip(self.codes, self.absmax, self.offsets, self.row_start, strict=True)
        return [
            replace(self, codes=codes, absmax=absmax, offsets=offsets, row_start=row_start)
            for codes, absmax, offsets, row_start in experts
        ]

    def dequantize(self) -> Float32:
        block = _block_of_entry(self.row_start, self.shape[-1], self.block_size)
        absmax = np.take_along_axis(self.absmax[..., None, :], block, axis=-1)
        values = scaled(self.table[self.codes], absmax)
        values += self.offsets[..., None]
        return values

    @property
    def nbytes(self) -> int:
        buffers = (self.codes, self.table, self.absmax, self.offsets, self.row_start)
        return sum(buffer.nbytes for buffer in buffers)


def _block_of_entry(row_start: Int32, columns: int, block_size: int) -> NDArray[np.intp]:
    return (row_start[..., None] + np.arange(columns)) // block_size


def _check_alike(parts: Sequence[Codebook8]) -> None:
    common_activation(parts)
    first = parts[0]
    if any(
        part.block_size != first.block_size or not np.array_equal(part.table, first.table)
        for part in parts
    ):
        raise UnsupportedModel(
            "weights with different 8-bit tables or block sizes cannot be joined into one product; "
            "multiply them apart, or quantize the whole model in one way"
        )
