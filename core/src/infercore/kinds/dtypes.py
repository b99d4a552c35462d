"""Dtype tags: how NumPy holds bits that it has no type for, and what they are worth."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

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
    """Widen a tagged buffer to float32, in a new array; exact but for integers beyond 2²⁴."""
    if dtype == "bfloat16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("float8"):
        return np.take(_float8_values(dtype), data)
    return data.astype(np.float32)


@cache
def _float8_values(dtype: str) -> NDArray[np.float32]:
    """What each of the 256 bytes is worth (OCP 8-bit floating point, OCP microscaling)."""
    bits = np.arange(256)
    values: NDArray[np.float64]
    if dtype == "float8_e8m0fnu":  # a power of two; no sign, no zero
        values = np.ldexp(1.0, bits - 127)
        values[255] = np.nan
        return values.astype(np.float32)
    if dtype == "float8_e5m2":  # the upper byte of a float16
        return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    assert dtype == "float8_e4m3fn", dtype
    exponent, mantissa = bits >> 3 & 15, bits & 7
    subnormal = exponent == 0
    values = np.ldexp(mantissa + np.where(subnormal, 0, 8), np.maximum(exponent, 1) - 10)
    values[bits & 127 == 127] = np.nan  # the one NaN; there is no infinity
    values[128:] *= -1
    return values.astype(np.float32)
