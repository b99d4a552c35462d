"""Random kinds beside the matrices that they should be, computed one element at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from infercore.kinds import (
    NF4,
    STORAGE,
    Blocks,
    Codebook4,
    Codebook8,
    Dense,
    Fp8,
    IntGrouped,
    Kind,
    pack_cells,
    uniform_groups,
)

Float32 = NDArray[np.float32]
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
TABLE = np.random.default_rng(256).standard_normal(256, np.float32)


@dataclass(frozen=True)
class Case:
    """A kind, and the matrix that it should be, computed element by element."""

    kind: Kind
    weight: Float32


def f32(values: Any) -> Float32:
    return np.array(values, np.float32)


def by_torch(dense: Dense) -> Float32:
    """What torch reads in the same bits."""
    bits = torch.from_numpy(np.ascontiguousarray(dense.data))
    values: Float32 = bits.view(getattr(torch, dense.dtype)).float().numpy()
    return values


def tagged(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Dense:
    """Random finite numbers of every magnitude that the dtype has."""
    storage = np.dtype(STORAGE[dtype])
    raw = rng.integers(0, 256, (*shape, storage.itemsize), np.uint8).view(storage)[..., 0]
    finite = np.isfinite(by_torch(Dense(raw, dtype)))
    return Dense(np.where(finite, raw, storage.type(1)), dtype)


def elementwise(n: int, k: int, element: Callable[[int, int], Any]) -> Float32:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.array([[element(i, j) for j in range(k)] for i in range(n)], np.float32)


def make_dense(rng: np.random.Generator, n: int, k: int) -> Case:
    dense = tagged(rng, (n, k), str(rng.choice(["float32", "float16", "bfloat16", *FLOAT8])))
    return Case(dense, by_torch(dense))


def make_int_grouped(rng: np.random.Generator, n: int, k: int) -> Case:
    bits = int(rng.choice([2, 3, 4, 8]))
    groups = int(rng.integers(1, k + 1))
    codes = rng.integers(0, 2**bits, (n, k), np.uint8)
    zeros = rng.integers(0, 2**bits + 1, (groups, n), np.int16)
    scales = tagged(rng, (groups, n), str(rng.choice(["float32", "float16", "bfloat16"])))
    of_row = rng.integers(0, groups, k, np.int32)
    if rng.random() < 0.5:
        of_row = uniform_groups(k, math.ceil(k / groups))
    values = by_torch(scales)
    weight = elementwise(
        n,
        k,
        lambda i, j: np.float32(int(codes[i, j]) - int(zeros[of_row[j], i])) * values[of_row[j], i],
    )
    packed = codes if bits == 8 else pack_cells(codes)
    return Case(IntGrouped(bits, packed, scales, zeros, of_row), weight)


def make_codebook8(rng: np.random.Generator, n: int, k: int) -> Case:
    size = 1 + 5 * k % 9  # parts to be joined have one K, so one size
    codes = rng.integers(0, 256, (n, k), np.uint8)
    absmax = rng.random(math.ceil(n * k / size), np.float32)
    offset = np.float32(rng.random())
    weight = elementwise(
        n, k, lambda i, j: TABLE[codes[i, j]] * absmax[(i * k + j) // size] + offset
    )
    return Case(Codebook8.from_flat(codes, TABLE, absmax, float(offset), size), weight)


def make_fp8(rng: np.random.Generator, n: int, k: int) -> Case:
    codes = tagged(rng, (n, k), FLOAT8[k % 2])  # parts to be joined have one K, so one dtype
    scale_dtype = str(rng.choice(["float32", "bfloat16", "float8_e8m0fnu"]))
    block = [None, (1, k), (int(rng.integers(1, n + 2)), int(rng.integers(1, k + 2)))][
        rng.integers(3)
    ]
    bn, bk = block or (n, k)
    scales = tagged(rng, (math.ceil(n / bn), math.ceil(k / bk)), scale_dtype)
    values, factors = by_torch(codes), by_torch(scales)
    weight = elementwise(n, k, lambda i, j: values[i, j] * factors[i // bn, j // bk])
    return Case(Fp8.from_scales(codes.dtype, codes.data, scales, block), weight)


def make_codebook4(rng: np.random.Generator, n: int, k: int) -> Case:
    size = int(rng.integers(1, k + 2))
    blocks = math.ceil(k / size)
    codes = rng.integers(0, 16, (n, k), np.uint8)
    scales = [
        lambda: make_codebook8(rng, n, blocks),  # NF4, doubly quantized
        lambda: make_fp8(rng, n, blocks),  # NVFP4
        lambda: make_dense(rng, n, blocks),
    ][rng.integers(3)]()
    weight = elementwise(n, k, lambda i, j: NF4[codes[i, j]] * scales.weight[i, j // size])
    return Case(Codebook4(pack_cells(codes), NF4, Blocks(k, size), scales.kind), weight)


MAKERS = [make_dense, make_int_grouped, make_codebook4, make_codebook8, make_fp8]
Make = Callable[[np.random.Generator, int, int], Case]

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 13)


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int]:
    start = draw(st.integers(0, size - 1))
    return start, draw(st.integers(start + 1, size))


def same(kind: Kind, weight: Float32) -> None:
    """Bit for bit, but for the sign of a NaN."""
    assert kind.shape == weight.shape
    np.testing.assert_array_equal(kind.dequantize(), weight)
