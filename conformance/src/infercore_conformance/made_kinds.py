"""Weights of every kind, made from a seed: one of each packing that checkpoint formats lead to.

Entries are about 1 / sqrt(K) large, so that a product of normal numbers is about 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from infercore.kinds import (
    E2M1,
    FP4,
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

Random = np.random.Generator
Make = Callable[[Random, int, int], Kind]
DOUBLY_QUANTIZED = 256  # scales that share a scale of their own in NF4


@dataclass(frozen=True, slots=True)
class Variant:
    """A packing. `make(random, n, k)` is a weight [n, k] of it; `str` names it in a report."""

    name: str
    make: Make

    def __str__(self) -> str:
        return self.name

    def weight(self, n: int, k: int, seed: int = 0) -> Kind:
        return self.make(np.random.default_rng([seed, n, k]), n, k)


def tagged(values: NDArray[np.float32], dtype: str) -> Dense:
    """The nearest, or for bfloat16 the next smaller, numbers of a dtype, as a checkpoint's bits."""
    if dtype == "bfloat16":
        return Dense((values.view(np.uint32) >> 16).astype(np.uint16), dtype)
    return Dense(values.astype(np.dtype(dtype)), dtype)


def dense(dtype: str, random: Random, n: int, k: int) -> Dense:
    return tagged((random.standard_normal((n, k)) * k**-0.5).astype(np.float32), dtype)


def grouped(
    bits: int, size: int, scales: str, random: Random, n: int, k: int, *, order: bool = False
) -> IntGrouped:
    """Groups of `size` columns, the last one maybe shorter; `order`: of columns in any order.

    Zeros take every value from 0 to 2^bits, which GPTQ's zero + 1 reaches.
    """
    of_row = uniform_groups(k, size)
    groups = int(of_row[-1]) + 1
    codes = random.integers(0, 2**bits, (n, k), np.uint8)
    zeros = random.integers(0, 2**bits + 1, (groups, n), np.int16)
    step = 2.0**-bits * k**-0.5
    return IntGrouped(
        bits,
        codes if bits == 8 else pack_cells(codes),
        tagged(random.uniform(step, 4 * step, (groups, n)).astype(np.float32), scales),
        zeros,
        random.permutation(of_row) if order else of_row,
    )


def uneven(random: Random, n: int, k: int) -> IntGrouped:
    """Any map: groups of one column and of many, and one that no column is in."""
    kind = grouped(4, 8, "float32", random, n, k)
    groups = len(kind.zeros)
    of_row = random.integers(0, groups, k).astype(np.int32) // 2
    of_row[0] = groups - 1
    return IntGrouped(4, kind.codes, kind.scales, kind.zeros, of_row)


def codebook(
    table: NDArray[np.float32],
    size: int,
    scales: Callable[[Random, int, int, float], Kind],
    random: Random,
    n: int,
    k: int,
) -> Codebook4:
    """scales(random, N, blocks, size of a weight): what multiplies the table's entries."""
    blocks = Blocks(k, size)
    step = 2 * k**-0.5 / float(np.abs(table).max())
    codes = pack_cells(random.integers(0, 16, (n, k), np.uint8))
    return Codebook4(codes, table, blocks, scales(random, n, blocks.count, step))


def float_scales(dtype: str, random: Random, n: int, blocks: int, step: float) -> Dense:
    values = random.uniform(step / 2, 2 * step, (n, blocks)).astype(np.float32)
    return tagged(values, dtype)


def power_scales(random: Random, n: int, blocks: int, step: float) -> Dense:
    """MXFP4's: powers of two, e8m0."""
    exponents = np.round(np.log2(step)) + random.integers(-1, 2, (n, blocks)) + 127
    return Dense(exponents.astype(np.uint8), "float8_e8m0fnu")


def fp8_scales(random: Random, n: int, blocks: int, step: float) -> Fp8:
    """NVFP4's: e4m3 between 0.5 and 3.75, under one float32 for the tensor."""
    codes = random.integers(0x30, 0x48, (n, blocks), np.uint8)
    return Fp8.from_scales("float8_e4m3fn", codes, Dense(np.array([step], np.float32), "float32"))


def double_scales(random: Random, n: int, blocks: int, step: float) -> Codebook8:
    """bitsandbytes' double quantization."""
    return codebook8(random, n, blocks, step=step / 4, offset=step)


def codebook8(
    random: Random, n: int, k: int, *, step: float = 0.0, offset: float = 0.0
) -> Codebook8:
    step = step or k**-0.5
    table = np.sort(random.uniform(-1, 1, 256)).astype(np.float32)
    codes = random.integers(0, 256, (n, k), np.uint8)
    count = -(-n * k // DOUBLY_QUANTIZED)
    absmax = random.uniform(step, 2 * step, count).astype(np.float32)
    return Codebook8.from_flat(codes, table, absmax, offset, DOUBLY_QUANTIZED)


def fp8(
    dtype: str, scales: str, block: tuple[int, int] | None, random: Random, n: int, k: int
) -> Fp8:
    """block: (N, K) that share a scale; None = all. Codes are of either sign, and some tiny."""
    one = 0x38 if dtype == "float8_e4m3fn" else 0x3C  # the bits of 1.0
    codes = random.integers(one - 12, one + 4, (n, k), np.uint8)
    tiny = random.integers(0, 4, (n, k), np.uint8)
    codes = np.where(random.random((n, k)) < 0.05, tiny, codes)
    codes = (codes | random.integers(0, 2, (n, k), np.uint8) << 7).astype(np.uint8)
    rows, columns = block or (n, k)
    shape = (-(-n // rows), -(-k // columns))
    values = (random.uniform(1, 3, shape) * k**-0.5).astype(np.float32)
    return Fp8.from_scales(dtype, codes, tagged(values, scales), block)


def _variants(**makes: Make) -> tuple[Variant, ...]:
    return tuple(Variant(name, make) for name, make in makes.items())


# kind → its packings, the commonest first
VARIANTS: Mapping[str, tuple[Variant, ...]] = {
    "dense": _variants(
        bfloat16=partial(dense, "bfloat16"),
        float32=partial(dense, "float32"),
        float16=partial(dense, "float16"),
    ),
    "int_grouped": _variants(
        int4_g128=partial(grouped, 4, 128, "float16"),
        int4_g32_order=partial(grouped, 4, 32, "float16", order=True),
        int8_channel=partial(grouped, 8, 2**20, "float32"),
        int4_g64=partial(grouped, 4, 64, "bfloat16"),
        int2_g16=partial(grouped, 2, 16, "float16"),
        int3_g32=partial(grouped, 3, 32, "float32"),
        int8_g32_order=partial(grouped, 8, 32, "float16", order=True),
        int4_uneven=uneven,
    ),
    "codebook4": _variants(
        nf4=partial(codebook, NF4, 64, partial(float_scales, "float32")),
        nf4_double=partial(codebook, NF4, 64, double_scales),
        fp4=partial(codebook, FP4, 64, partial(float_scales, "float32")),
        mxfp4=partial(codebook, E2M1, 32, power_scales),
        nvfp4=partial(codebook, E2M1, 16, fp8_scales),
        nf4_bfloat16=partial(codebook, NF4, 128, partial(float_scales, "bfloat16")),
    ),
    "codebook8": _variants(codebook8=partial(codebook8, offset=0.05)),
    "fp8": _variants(
        e4m3_channel=partial(fp8, "float8_e4m3fn", "float32", (1, 2**20)),
        e4m3_tensor=partial(fp8, "float8_e4m3fn", "float32", None),
        e4m3_block=partial(fp8, "float8_e4m3fn", "bfloat16", (32, 32)),
        e5m2_channel=partial(fp8, "float8_e5m2", "float32", (1, 2**20)),
    ),
}
ALL: tuple[Variant, ...] = tuple(v for variants in VARIANTS.values() for v in variants)
COMMONEST: tuple[Variant, ...] = tuple(variants[0] for variants in VARIANTS.values())


def buffers(kind: Kind) -> list[NDArray[np.generic]]:
    """All arrays that a kind is made of, those of its scales too."""
    found: list[NDArray[np.generic]] = []
    for field in fields(kind):  # type: ignore[arg-type]  # every kind is a dataclass
        value = getattr(kind, field.name)
        if isinstance(value, Kind):
            found += buffers(value)
        elif isinstance(value, np.ndarray):
            found.append(value)
    return found


def widened_bytes(kind: Kind, dtype: str) -> int:
    """What the kind takes with its codes as they are, and its scales and zeros in float32.

    dtype: that a dense weight may be stored in.
    """
    match kind:
        case IntGrouped():
            return kind.codes.nbytes + 8 * kind.zeros.size + kind.group_of_row.nbytes
        case Codebook4():
            return kind.codes.nbytes + kind.table.nbytes + 4 * int(np.prod(kind.scales.shape))
        case Fp8():
            return kind.codes.nbytes + 4 * kind.scales.data.size
        case Dense():
            return kind.data.size * _itemsize(dtype)
    return kind.nbytes


def code_bytes(kind: Kind, dtype: str) -> int:
    """The least that the kind's values take, in any layout that keeps them.

    dtype: that a dense weight may be rounded to.
    """
    match kind:
        case IntGrouped():
            bits = kind.bits
        case Codebook4():
            bits = 4
        case Dense():
            bits = 8 * min(_itemsize(dtype), _itemsize(kind.dtype))
        case _:
            bits = 8
    return int(np.prod(kind.shape)) * bits // 8


def _itemsize(dtype: str) -> int:
    return int(np.dtype(STORAGE[dtype]).itemsize)
