"""4-bit cells, two per byte along K: column 2j in the low half of byte j, 2j + 1 in the high one.

An odd K leaves the last high half unused; it is 0, so that equal weights have equal bytes.
"""

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]


def pack_cells(values: UInt8) -> UInt8:
    """uint8[..., K], each below 16 → uint8[..., ceil(K / 2)]."""
    packed = values[..., 0::2].copy()
    packed[..., : values.shape[-1] // 2] |= values[..., 1::2] << 4
    return packed


def unpack_cells(packed: UInt8, columns: int) -> UInt8:
    """uint8[..., ceil(K / 2)] → uint8[..., K], K = columns."""
    values = np.empty((*packed.shape[:-1], columns), np.uint8)
    values[..., 0::2] = packed & 15
    values[..., 1::2] = packed[..., : columns // 2] >> 4
    return values


def slice_cells(packed: UInt8, start: int, stop: int) -> UInt8:
    """Columns start:stop. A view where no byte is cut, else packed anew."""
    part = packed[..., start // 2 : (stop + 1) // 2]
    whole = stop % 2 == 0 or not (part[..., -1] >> 4).any()
    if start % 2 == 0 and whole:
        return part
    first = start % 2
    return pack_cells(unpack_cells(part, first + stop - start)[..., first:])
