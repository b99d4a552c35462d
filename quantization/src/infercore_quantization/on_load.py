"""Quantizes a 16-bit checkpoint while it is loaded: one matrix at a time, without calibration.

The output matrix and the embeddings keep their 16 bits, as in the files of all tools.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import (
    FP4,
    NF4,
    Activation,
    Codebook4,
    Dense,
    Fp8,
    IntGrouped,
    Kind,
    pack_cells,
    uniform_groups,
)
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import QuantizationMethod, TensorFile
from infercore_quantization.layouts import blocks_of_flat, symmetric_rows
from infercore_quantization.reading import is_head, plain

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

BLOCK = 64  # weights that share a scale in NF4 and FP4, bitsandbytes' default
GROUP = 128  # in int4 and int8
E4M3_MAX = 448.0
CHUNK = 1 << 17  # weights that are quantized at once, so that they stay in a core's cache
TINY = np.float32(1e-38)  # keeps weights that are all 0 from being divided by 0


K = TypeVar("K", bound=Kind)


def in_parts(weight: Dense, quantize: Callable[[Dense], K]) -> K:
    """quantize(weight), some rows at a time, on all cores, in little memory beside the result."""
    n, k = weight.shape
    rows = max(1, CHUNK // k // BLOCK) * BLOCK  # whole blocks, also of a flattened matrix
    if n <= rows:
        return quantize(weight)
    pieces = [weight.slice_n(at, min(at + rows, n)) for at in range(0, n, rows)]
    with ThreadPoolExecutor() as pool:  # NumPy lets go of the interpreter while it computes
        parts = list(pool.map(quantize, pieces))
    return type(parts[0]).concat_n(parts)


def codebook4(weight: Dense, table: Float32) -> Codebook4:
    """W in blocks of 64, flattened row after row, each weight the nearest of the table's values.

    Equal, bit for bit, to what bitsandbytes 0.50 makes without double quantization; it breaks
    ties downwards and, like here, divides the last, cut block by its scale and multiplies the
    others with the scale's inverse.
    """
    n, k = weight.shape
    values = _float32(weight).reshape(-1)
    whole = n * k // BLOCK * BLOCK
    blocks = values[:whole].reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(axis=-1)
    blocks *= np.float32(1) / np.maximum(absmax, TINY)[:, None]
    if whole < n * k:
        last = np.maximum(np.abs(values[whole:]).max(), TINY)
        values[whole:] /= last
        absmax = np.append(absmax, last)
    codes = _nearest(values, table).reshape(n, k)
    return Codebook4(pack_cells(codes), table, *blocks_of_flat(absmax, n, k, BLOCK))


def _nearest(values: Float32, table: Float32) -> UInt8:
    """The code of the table's value nearest to each of `values`; on a tie, the lower value's."""
    order = np.argsort(table, kind="stable").astype(np.uint8)
    ordered = table[order]
    rank = np.zeros(values.shape, np.uint8)
    above = np.empty(values.shape, np.bool_)
    for bound in (ordered[:-1] + ordered[1:]) / np.float32(2):
        rank += np.greater(values, bound, out=above).view(np.uint8)
    return order[rank]


def int8_rows(weight: Dense) -> IntGrouped:
    """int8 with one scale per output, |W| at most 127 scales, as LLM.int8 stores weights."""
    values = _float32(weight)
    absmax = np.abs(values).max(axis=-1)
    # bitsandbytes' order of operations, so that its codes come out
    values *= (np.float32(1) / np.maximum(absmax, 100 * TINY) * np.float32(127))[:, None]
    return symmetric_rows(np.rint(values).astype(np.int8), absmax * np.float32(1 / 127))


def int_groups(weight: Dense, bits: int) -> IntGrouped:
    """Rounded to the nearest of 2^bits steps between the least and the largest of 128 inputs.

    The range always holds 0, which one code stands for exactly.
    """
    k = weight.shape[1]
    starts = np.arange(0, k, GROUP)
    values = _float32(weight)
    zero = np.float32(0)
    low = np.minimum(np.minimum.reduceat(values, starts, axis=-1), zero)
    high = np.maximum(np.maximum.reduceat(values, starts, axis=-1), zero)
    top = np.float32(2**bits - 1)
    scales = np.maximum((high - low) / top, TINY)
    zeros = np.rint(-low / scales)
    group_of_row = uniform_groups(k, GROUP)
    values /= np.take(scales, group_of_row, axis=-1)
    values += np.take(zeros, group_of_row, axis=-1)
    codes = np.clip(np.rint(values, out=values), 0, top, out=values).astype(np.uint8)
    return IntGrouped(
        bits,
        codes if bits == 8 else pack_cells(codes),
        Dense(np.ascontiguousarray(scales.T), "float32"),
        np.ascontiguousarray(zeros.T.astype(np.int16)),
        group_of_row,
    )


def fp8_rows(weight: Dense) -> Fp8:
    """e4m3 with one scale per output, whose largest weight is 448; inputs likewise, per token."""
    values = _float32(weight)
    scales = np.maximum(np.abs(values).max(axis=-1), TINY) / np.float32(E4M3_MAX)
    codes = to_e4m3(values / scales[:, None])
    activation = Activation("float8_e4m3fn")
    return Fp8.from_scales("float8_e4m3fn", codes, Dense(scales, "float32"), None, activation)


def to_e4m3(values: Float32) -> UInt8:
    """The nearest e4m3 numbers, ties to the even one (OCP 8-bit floating point); ±448 at most."""
    magnitude = np.minimum(np.abs(values), np.float32(E4M3_MAX))
    exponent = (magnitude.view(np.int32) >> 23) - 127
    exponent = np.maximum(exponent, -6)  # that of subnormal numbers, and of 0
    power = ((3 - exponent + 127) << 23).view(np.float32)  # 2^(3 − exponent)
    steps = np.rint(magnitude * power).astype(np.int32)
    # 16 steps carry into the exponent by themselves; subnormal numbers have fewer than 8
    codes: UInt8 = (((exponent + 7) << 3) + steps - 8).astype(np.uint8)
    codes |= (values.view(np.uint32) >> 24).astype(np.uint8) & np.uint8(128)  # the sign
    return codes


def _float32(weight: Dense) -> Float32:
    """W in a new contiguous float32 array. Raises CheckpointError for infinities and NaN."""
    values = np.ascontiguousarray(weight.dequantize())
    if not np.isfinite(values).all():
        raise CheckpointError(
            "a matrix to quantize holds infinities or NaN; download the checkpoint again"
        )
    return values


class OnLoad(QuantizationMethod):
    """Reads a plain checkpoint and quantizes every matrix but the head. Never detected."""

    made: ClassVar[str]  # the kind's name

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        del config
        return False

    def __init__(self, config: Mapping[str, Any]) -> None:
        if config:
            raise UnsupportedModel(
                f"the checkpoint is quantized already, by {config.get('quant_method', 'a tool')}, "
                f"and {self.name} quantizes 16-bit checkpoints; serve it without --quantize"
            )

    def kind(self, linear: LinearSpec) -> str:
        return Dense.name if is_head(linear) else self.made

    def tensors(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        return spec.tensors()

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        weight = plain(linear, file)
        return weight if is_head(linear) else in_parts(weight, self.quantize)

    @staticmethod
    @abstractmethod
    def quantize(weight: Dense) -> Kind:
        """The matrix [N, K] as a kind of the name `made`."""


class Nf4(OnLoad):
    """NF4 (Dettmers et al. 2023, QLoRA) in blocks of 64, with float32 scales."""

    name: ClassVar[str] = "bitsandbytes-nf4"
    made = Codebook4.name

    @staticmethod
    def quantize(weight: Dense) -> Kind:
        return codebook4(weight, NF4)


class Fp4(OnLoad):
    """The 4-bit float of bitsandbytes in blocks of 64, with float32 scales."""

    name: ClassVar[str] = "bitsandbytes-fp4"
    made = Codebook4.name

    @staticmethod
    def quantize(weight: Dense) -> Kind:
        return codebook4(weight, FP4)


class Eetq(OnLoad):
    """int8 weights with a scale per output, as EETQ stores them."""

    name: ClassVar[str] = "eetq"
    made = IntGrouped.name

    @staticmethod
    def quantize(weight: Dense) -> Kind:
        return int8_rows(weight)


class Int8(OnLoad):
    """Round-to-nearest in groups of 128."""

    name: ClassVar[str] = "int8"
    made = IntGrouped.name

    @staticmethod
    def quantize(weight: Dense) -> Kind:
        return int_groups(weight, 8)


class Int4(OnLoad):
    """Round-to-nearest in groups of 128."""

    name: ClassVar[str] = "int4"
    made = IntGrouped.name

    @staticmethod
    def quantize(weight: Dense) -> Kind:
        return int_groups(weight, 4)
