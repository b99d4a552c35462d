"""4-bit codes into a table of 16, with a scale per block of K: NF4, FP4, MXFP4, NVFP4."""

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
from infercore.kinds.cells import UInt8, slice_cells, unpack_cells
from infercore.kinds.dense import Dense

Float32 = NDArray[np.float32]


def _table(values: Sequence[float]) -> Float32:
    table = np.array(values, np.float32)
    table.flags.writeable = False
    return table


# Quantiles of the normal distribution (Dettmers et al. 2023, QLoRA, appendix E), in float32 as
# bitsandbytes writes them into its checkpoints.
NF4 = _table(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)

# The 4-bit float of bitsandbytes: values in its own order of codes, then made to end at 1.
_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32)
FP4 = _table([*(_FP4 / 12), *(-_FP4 / 12)])

# E2M1, the element of MXFP4 and NVFP4 (OCP Microscaling Formats 1.0, 2023): code 8 is −0.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = _table([*_E2M1, *-_E2M1])


@dataclass(frozen=True, slots=True, eq=False)
class Codebook4(Kind):
    """W[n, k] = table[code[n, k]] · scale[n, (k + offset) // size], size and offset of `blocks`.

    codes: uint8[N, ceil(K / 2)] in 4-bit cells (see `cells`).
    table: float32[16], what each code is worth.
    blocks: of K; its offset is 0 unless a slice cut a block.
    scales: [N, blocks.count], itself a kind: `Dense` for float32, bfloat16, float8_e8m0fnu
        (MXFP4) or float8_e4m3fn; `Fp8` for e4m3 scales under a float32 one (NVFP4);
        `Codebook8` for NF4's double quantization.
    A stack has E before codes and scales. Raises UnsupportedModel where tables differ.
    """

    name = "codebook4"
    codes: UInt8
    table: Float32
    blocks: Blocks
    scales: Kind
    activation: Activation | None = None

    def __post_init__(self) -> None:
        *experts, n, k = self.shape
        check_buffers(
            self,
            codes=(self.codes, "uint8", (*experts, n, (k + 1) // 2)),
            table=(self.table, "float32", (16,)),
            scales=(self.scales, "", (*experts, n, self.blocks.count)),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], self.blocks.length)

    def values(self) -> UInt8:
        """The codes, one per byte: uint8[N, K]."""
        return unpack_cells(self.codes, self.blocks.length)

    def slice_n(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-2])
        return replace(
            self, codes=self.codes[..., start:stop, :], scales=self.scales.slice_n(start, stop)
        )

    def slice_k(self, start: int, stop: int) -> Self:
        check_range(start, stop, self.shape[-1])
        blocks, kept = self.blocks.cut(start, stop)
        return replace(
            self,
            codes=slice_cells(self.codes, start, stop),
            blocks=blocks,
            scales=self.scales.slice_k(kept.start, kept.stop),
        )

    @classmethod
    def concat_n(cls, parts: Sequence[Self]) -> Self:
        activation, blocks, scales = _alike(parts)
        codes = np.concatenate([part.codes for part in parts], axis=-2)
        joined = type(scales[0]).concat_n(scales)
        return cls(codes, parts[0].table, blocks, joined, activation)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        activation, blocks, scales = _alike(parts)
        codes = np.stack([part.codes for part in parts])
        stacked = type(scales[0]).stack(scales)
        return cls(codes, parts[0].table, blocks, stacked, activation)

    def unstack(self) -> list[Self]:
        experts = zip(self.codes, self.scales.unstack(), strict=True)
        return [replace(self, codes=codes, scales=scales) for codes, scales in experts]

    def dequantize(self) -> Float32:
        scales = np.take(self.scales.dequantize(), self.blocks.index(), axis=-1)
        return scaled(np.take(self.table, self.values()), scales)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.table.nbytes + self.scales.nbytes


def _alike(parts: Sequence[Codebook4]) -> tuple[Activation | None, Blocks, list[Kind]]:
    """What the parts share, and their scales as one kind over the same blocks."""
    activation = common_activation(parts)
    if any(not np.array_equal(part.table, parts[0].table) for part in parts):
        raise UnsupportedModel(
            "weights with different 4-bit tables cannot be joined into one product; "
            "multiply them apart, or quantize the whole model to one 4-bit type"
        )
    blocks = Blocks.common([part.blocks for part in parts])
    scales: list[Kind] = [part.scales for part in parts]
    if any(part.blocks != blocks for part in parts) or len({type(s) for s in scales}) > 1:
        scales = [
            Dense(part.scales.dequantize()[..., part.blocks.refine(blocks)], "float32")
            for part in parts
        ]
    return activation, blocks, scales
