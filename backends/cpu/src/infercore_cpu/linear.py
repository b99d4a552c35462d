"""Matrix products: native where the library is there, else torch's in its fastest order."""

import ctypes

import numpy as np
import torch
from torch import Tensor

from infercore.kinds import Codebook4, Dense, IntGrouped, Kind
from infercore.layers.common import to_tensor, torch_dtype
from infercore.layers.linear import DenseLinear
from infercore_cpu.native import STEPS, Groups, Packed

FEWEST, MOST = 4, 128  # rows of x between which the turned product was measured to be faster

CPU = torch.device("cpu")


class CpuLinear(DenseLinear):
    """y = x Wᵀ, of few rows as (W xᵀ)ᵀ, which torch splits over the long side, W's.

    At 16 rows that takes two thirds of the time on two threads, and less at a large vocabulary.
    """

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 and FEWEST <= len(x) <= MOST:
            return torch.mm(self.weight, x.t()).t().contiguous()
        return super().__call__(x)


class NativeLinear:
    """y = x Wᵀ by the native kernels, with W as it is stored and sums in float32.

    x and y [T, ·] in float32, bfloat16 or float16. Where the weight says so x is rounded to int8
    on its way, each row by itself, in blocks that follow the weight's groups. A row of y has the
    same bits whatever other rows there are and however many threads work.
    """

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            return self(x.float()).half()
        x = x.contiguous()
        y = torch.empty(len(x), self.packed.shape[0], dtype=x.dtype)
        failed = self.packed.lib.infercore_linear(
            self.packed.address, x.data_ptr(), x.dtype == torch.bfloat16, y.data_ptr(), len(x)
        )
        if failed:
            raise MemoryError(f"no memory for {len(x)} rows of {x.shape[1]} numbers")
        return y

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


def native_linear(
    lib: ctypes.CDLL, kind: Kind, dtype: str, *, rounds: bool = False
) -> NativeLinear:
    """Any kind of shape [N, K] in panels; those that no kernel multiplies as dense ones in `dtype`.

    A dense weight stays in its dtype unless `dtype` is a narrower one. rounds: x is rounded to
    int8 where it meets codes.
    """
    if isinstance(kind, IntGrouped):
        return NativeLinear(_pack_int(lib, kind, rounds))
    if isinstance(kind, Codebook4):
        return NativeLinear(_pack_codebook(lib, kind, rounds))
    dense = kind if isinstance(kind, Dense) else Dense(kind.dequantize(), "float32")
    if dense.dtype not in ("bfloat16", "float16", dtype):
        dense = _converted(dense, dtype)
    return NativeLinear(Packed(lib, dense.dtype, dense.data, dense.shape[1]))


def _converted(dense: Dense, dtype: str) -> Dense:
    tensor = to_tensor(dense, CPU, torch_dtype(dtype))
    bits = tensor.view(torch.int16) if dtype == "bfloat16" else tensor
    return Dense(bits.numpy(), dtype)


def _pack_int(lib: ctypes.CDLL, kind: IntGrouped, rounds: bool) -> Packed:
    name = "int8" if kind.bits == 8 else "int4"
    used, group_of_column = np.unique(kind.group_of_row, return_inverse=True)
    scales = Dense(kind.scales.data[used], kind.scales.dtype)
    groups = Groups(group_of_column, STEPS[name], scales, kind.zeros[used])
    return Packed(lib, name, kind.codes, kind.shape[1], groups, rounds=rounds)


def _pack_codebook(lib: ctypes.CDLL, kind: Codebook4, rounds: bool) -> Packed:
    stored = kind.scales
    dense = stored if isinstance(stored, Dense) else Dense(stored.dequantize(), "float32")
    scales = Dense(dense.data.T, dense.dtype)
    groups = Groups(kind.blocks.index(), STEPS["codebook4"], scales)
    columns = kind.shape[1]
    return Packed(lib, "codebook4", kind.codes, columns, groups, kind.table, rounds=rounds)
