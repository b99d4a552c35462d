"""Layouts that several formats store, turned into those of core's kinds."""

import math

import numpy as np
from numpy.typing import NDArray

from infercore.kinds import Blocks, Dense, IntGrouped, pack_cells

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


def cells_of_flat(packed: UInt8, n: int, k: int) -> UInt8:
    """4-bit codes of a matrix flattened row after row, the first of a byte in its high half.

    packed uint8[ceil(n k / 2)] → cells uint8[n, ceil(k / 2)].
    """
    if k % 2 == 0:
        rows = packed.reshape(n, k // 2)
        swapped: UInt8 = rows >> np.uint8(4) | rows << np.uint8(4)
        return swapped
    codes: UInt8 = np.stack([packed >> np.uint8(4), packed & np.uint8(15)], axis=-1).reshape(-1)
    return pack_cells(codes[: n * k].reshape(n, k))


def blocks_of_flat(scales: Float32, n: int, k: int, size: int) -> tuple[Blocks, Dense]:
    """Scales of blocks of `size` weights, counted through all rows, as blocks of each row.

    scales float32[ceil(n k / size)] → [n, blocks]. Where a row ends inside a block, blocks are
    split into parts that rows do not cut, so that they take more memory.
    """
    if k % size == 0:
        return Blocks(k, size), Dense(scales.reshape(n, -1), "float32")
    part = math.gcd(k, size)
    first = np.arange(n)[:, None] * k + np.arange(k // part) * part
    return Blocks(k, part), Dense(scales[first // size], "float32")


def symmetric_rows(codes: NDArray[np.int8], scales: Float32) -> IntGrouped:
    """W[n, k] = codes[n, k] · scales[n]: int8[N, K], float32[N]."""
    n, k = codes.shape
    return IntGrouped(
        8,
        codes.view(np.uint8) ^ np.uint8(128),  # two's complement + 128
        Dense(scales.reshape(1, n), "float32"),
        np.full((1, n), 128, np.int16),
        np.zeros(k, np.int32),
    )
