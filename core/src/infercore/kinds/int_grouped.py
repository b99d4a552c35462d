"""Integer weights in groups with a scale and a zero: GPTQ, AWQ, compressed-tensors, int8."""

# pyright: reportIncompatibleMethodOverride=false
# (it takes Self in a parameter for the base class; mypy checks overrides)

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds.base import (
    Activation,
    Kind,
    check_buffers,
    check_range,
    common_activation,
    scaled,
)
from infercore.kinds.cells import UInt8, slice_cells, unpack_cells
from infercore.kinds.dense import Dense

BITS = (2, 3, 4, 8)


def uniform_groups(columns: int, group_size: int) -> NDArray[np.int32]:
    """The map of groups of neighbours; the last may be shorter."""
    return np.arange(columns, dtype=np.int32) // np.int32(group_size)


@dataclass(frozen=True, slots=True, eq=False)
class IntGrouped(Kind):
    """W[n, k] = (code[n, k] − zeros[g, n]) · scales[g, n], g = group_of_row[k].

    bits: 2, 3, 4 or 8. Codes and zeros are unsigned; a signed checkpoint adds 2^(bits−1) to both.
    codes: uint8[N, ceil(K / 2)] in 4-bit cells (see `cells`), or uint8[N, K] for 8 bits.
    scales: [G, N], float32, float16 or bfloat16. zeros: int16[G, N] in 0…2^bits.
    group_of_row: int32[K], the group of each input feature, in any order: act-order is no
        permutation here. (K is the row of W's transpose, which GPTQ stores.)
    A stack has E before all of these; experts of fewer groups are filled up with unused ones.
    Raises CheckpointError if the map names a group that is not there.
    """

    name = "int_grouped"
    bits: int
    codes: UInt8
    scales: Dense
    zeros: NDArray[np.int16]
    group_of_row: NDArray[np.int32]
    activation: Activation | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UnsupportedModel(
                f"integer weights of {self.bits} bits cannot be served; "
                f"quantize the model to one of {', '.join(map(str, BITS))}"
            )
        experts, (n, k), groups = self.shape[:-2], self.shape[-2:], self.scales.shape[-2]
        width = k if self.bits == 8 else (k + 1) // 2
        check_buffers(
            self,
            codes=(self.codes, "uint8", (*experts, n, width)),
            scales=(self.scales, "", (*experts, groups, n)),
            zeros=(self.zeros, "int16", (*experts, groups, n)),
            group_of_row=(self.group_of_row, "int32", (*experts, k)),
        )
        low, high = int(self.group_of_row.min()), int(self.group_of_row.max())
        if low < 0 or high >= groups:
            raise CheckpointError(
                f"an input feature is in group {low if low < 0 else high}, and there are only "
                f"{groups} groups of scales; download the checkpoint again"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], self.group_of_row.shape[-1])

    def values(self) -> UInt8:
        """The codes, one per byte: uint8[N, K]."""
        return self.codes if self.bits == 8 else unpack_cells(self.codes, self.shape[-1])

    def slice_n(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-2])
        return replace(
            self,
            codes=self.codes[..., start:stop, :],
            scales=self.scales.slice_k(start, stop),
            zeros=self.zeros[..., start:stop],
        )

    def slice_k(self, start: int, stop: int) -> Self:
        """Groups that no column uses any more are dropped, and the map is renumbered."""
        check_range(start, stop, self.shape[-1])
        if len(self.shape) == 3:
            return self.stack([expert.slice_k(start, stop) for expert in self.unstack()])
        used, renumbered = np.unique(self.group_of_row[start:stop], return_inverse=True)
        codes = (
            self.codes[:, start:stop] if self.bits == 8 else slice_cells(self.codes, start, stop)
        )
        return replace(
            self,
            codes=codes,
            scales=replace(self.scales, data=self.scales.data[used]),
            zeros=self.zeros[used],
            group_of_row=renumbered.astype(np.int32),
        )

    @classmethod
    def concat_n(cls, parts: Sequence[Self]) -> Self:
        """Where maps differ, columns that share a group in every part make a new one."""
        activation = common_activation(parts)
        if len(parts[0].shape) == 3:
            experts = zip(*(part.unstack() for part in parts), strict=True)
            return cls.stack([cls.concat_n(expert) for expert in experts])
        bits = max(part.bits for part in parts)
        maps = np.stack([part.group_of_row for part in parts])
        groups, group_of_row = np.unique(maps, axis=1, return_inverse=True)
        scales = [
            replace(part.scales, data=part.scales.data[used])
            for part, used in zip(parts, groups, strict=True)
        ]
        zeros = [part.zeros[used] for part, used in zip(parts, groups, strict=True)]
        return cls(
            bits,
            np.concatenate([_codes_in(part, bits) for part in parts]),
            Dense.concat(scales, axis=-1),
            np.concatenate(zeros, axis=-1),
            group_of_row.reshape(-1).astype(np.int32),
            activation,
        )

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        activation = common_activation(parts)
        bits = max(part.bits for part in parts)
        groups = max(len(part.zeros) for part in parts)
        missing = [((0, groups - len(part.zeros)), (0, 0)) for part in parts]
        scales = [
            replace(part.scales, data=np.pad(part.scales.data, pad))
            for part, pad in zip(parts, missing, strict=True)
        ]
        return cls(
            bits,
            np.stack([_codes_in(part, bits) for part in parts]),
            Dense.stack(scales),
            np.stack([np.pad(p.zeros, pad) for p, pad in zip(parts, missing, strict=True)]),
            np.stack([part.group_of_row for part in parts]),
            activation,
        )

    def unstack(self) -> list[Self]:
        experts = zip(self.codes, self.scales.unstack(), self.zeros, self.group_of_row, strict=True)
        return [
            replace(self, codes=codes, scales=scales, zeros=zeros, group_of_row=group_of_row)
            for codes, scales, zeros, group_of_row in experts
        ]

    def dequantize(self) -> NDArray[np.float32]:
        if len(self.shape) == 3:
            return np.stack([expert.dequantize() for expert in self.unstack()])
        weights = self.values().astype(np.float32)
        weights -= self._per_column(self.zeros)
        return scaled(weights, self._per_column(self.scales.dequantize()))

    def _per_column(self, values: NDArray[Any]) -> NDArray[Any]:
        """[G, N] → [N, K]. Turned before it grows, so that it is written in order."""
        return np.take(np.ascontiguousarray(values.T), self.group_of_row, axis=-1)

    @property
    def nbytes(self) -> int:
        buffers = (self.codes, self.scales, self.zeros, self.group_of_row)
        return sum(buffer.nbytes for buffer in buffers)


def _codes_in(part: IntGrouped, bits: int) -> UInt8:
    """The part's codes in the cells of `bits`, which are at least as wide."""
    if part.bits == 8 or bits != 8:
        return part.codes
    return part.values()
