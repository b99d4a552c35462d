"""Weight kinds: what every quantization format becomes at load, and what backends multiply.

A kind is a weight matrix W of logical shape [N, K] (out, in; y = x Wᵀ) in NumPy buffers with a
dtype tag, so that torch or JAX can wrap them without a copy and core needs neither.
"""

from infercore.kinds.base import Activation, Kind
from infercore.kinds.blocks import Blocks
from infercore.kinds.cells import pack_cells, unpack_cells
from infercore.kinds.codebook4 import E2M1, FP4, NF4, Codebook4
from infercore.kinds.codebook8 import Codebook8
from infercore.kinds.dense import Dense
from infercore.kinds.dtypes import STORAGE, Array, to_float32
from infercore.kinds.fp8 import Fp8
from infercore.kinds.int_grouped import IntGrouped, uniform_groups

__all__ = [
    "E2M1",
    "FP4",
    "NF4",
    "STORAGE",
    "Activation",
    "Array",
    "Blocks",
    "Codebook4",
    "Codebook8",
    "Dense",
    "Fp8",
    "IntGrouped",
    "Kind",
    "pack_cells",
    "to_float32",
    "uniform_groups",
    "unpack_cells",
]
