"""Words of several codes each, as GPTQ and AWQ pack them, turned into the cells of core's kinds.

GPTQ: a stream of codes without gaps, the first in the lowest bits, cut into words. Codes run down
the input features (`qweight`), zero points along the outputs (`qzeros`). 4 bits in 32-bit words:

    bit  31    28 27    24 23    20 19    16 15    12 11     8 7      4 3      0
         | k = 7 | k = 6  | k = 5  | k = 4  | k = 3  | k = 2  | k = 1  | k = 0  |

3 bits: 32 codes in 3 words, so that the 11th and the 22nd code lie in two words each.

AWQ (GEMM): the codes of 8 neighbouring outputs in a 32-bit word, evens first:

    bit  31    28 27    24 23    20 19    16 15    12 11     8 7      4 3      0
         | n = 7 | n = 5  | n = 3  | n = 1  | n = 6  | n = 4  | n = 2  | n = 0  |
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercore.kinds import unpack_cells
from infercore.kinds.cells import slice_cells

UInt8 = NDArray[np.uint8]
Words = NDArray[Any]  # signed or unsigned integers of one width; only their bits count

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of the word's outputs, from its lowest bits on
AWQ_CODES = len(AWQ_COLUMNS)  # in a word


def stream_words(codes: int, bits: int, word_bits: int = 32) -> int:
    """Words that hold a stream of that many codes."""
    return -(-codes * bits // word_bits)


def stream_codes(words: Words, bits: int, count: int) -> UInt8:
    """Streams along the last axis, [N, W], as the codes of an `IntGrouped`; 2, 3, 4 or 8 bits."""
    stream = _bytes(words)
    if bits == 8:
        return np.ascontiguousarray(stream[..., :count])
    if bits < 4:  # a stream of 4-bit codes is what cells are
        stream = _cells_of_2(stream) if bits == 2 else _cells_of_3(stream)
    return np.ascontiguousarray(slice_cells(stream, 0, count))


def unpack_stream(words: Words, bits: int, count: int) -> UInt8:
    """Streams along the last axis, one code per byte: words[..., W] → uint8[..., count]."""
    codes = stream_codes(words, bits, count)
    return codes if bits == 8 else unpack_cells(codes, count)


def awq_codes(words: Words) -> UInt8:
    """qweight[K, N / 8] → cells uint8[N, ceil(K / 2)]."""
    k, width = words.shape
    pairs = np.zeros((width, (k + 1) // 2, 2), np.uint32)  # of neighbouring inputs
    pairs.reshape(width, -1)[:, :k] = words.view(np.uint32).T
    first, second = pairs[..., 0], pairs[..., 1]
    low, high = np.uint32(0x0F0F0F0F), np.uint32(0xF0F0F0F0)
    cells = np.empty((width, AWQ_CODES, pairs.shape[1]), np.uint8)
    for odd, halves in enumerate(
        [(first & low) | (second & low) << 4, (first & high) >> 4 | (second & high)]
    ):
        # byte i holds what lay in place 2 i + odd, of both inputs
        for place, data in enumerate(np.moveaxis(_bytes(halves[..., None]), -1, 0)):
            cells[:, AWQ_COLUMNS[2 * place + odd]] = data
    return cells.reshape(width * AWQ_CODES, -1)


def awq_values(words: Words) -> UInt8:
    """Codes that run along the last axis, [G, N / 8] → uint8[G, N]."""
    words = words.view(np.uint32)
    values = np.empty((*words.shape, AWQ_CODES), np.uint8)
    for place, column in enumerate(AWQ_COLUMNS):
        values[..., column] = (words >> (4 * place)) & 15
    return values.reshape(*words.shape[:-1], -1)


def _bytes(words: Words) -> UInt8:
    """Each word as its bytes, little end first."""
    return np.ascontiguousarray(words).view(np.uint8)


def _cells_of_2(stream: UInt8) -> UInt8:
    """Each byte's 4 codes as the 2 bytes of their cells."""
    byte = np.arange(256, dtype=np.uint16)
    cells = byte & 3 | (byte & 12) << 2 | (byte & 48) << 4 | (byte & 192) << 6
    return np.take(cells, stream).view(np.uint8)


def _cells_of_3(stream: UInt8) -> UInt8:
    """The 8 codes of 3 bytes as the 4 bytes of their cells."""
    missing = -stream.shape[-1] % 3
    if missing:
        stream = np.concatenate([stream, np.zeros((*stream.shape[:-1], missing), np.uint8)], -1)
    codes = stream[..., 0::3].astype(np.uint32)
    codes |= stream[..., 1::3].astype(np.uint32) << 8
    codes |= stream[..., 2::3].astype(np.uint32) << 16
    cells = np.zeros_like(codes)
    for index in range(8):
        cells |= (codes & np.uint32(7 << 3 * index)) << index
    return cells.view(np.uint8)
