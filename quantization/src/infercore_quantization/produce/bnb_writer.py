"""codebook4 as the tensors of a 4-bit bitsandbytes file: what the reader beside this takes."""

import json

import numpy as np

from infercore.kinds import Codebook4, Dense, unpack_cells
from infercore_quantization.bitsandbytes import STATE
from infercore_quantization.on_load import BLOCK

DTYPE = "bfloat16"  # in which bitsandbytes computes, unless the reader says another


def bitsandbytes_tensors(name: str, kind: Codebook4, quant_type: str) -> dict[str, Dense]:
    """The layer `name`, without double quantization. quant_type: "nf4" or "fp4"."""
    n, k = kind.shape
    codes = np.append(unpack_cells(kind.codes, k).reshape(-1), np.zeros(n * k % 2, np.uint8))
    packed = (codes[0::2] << np.uint8(4) | codes[1::2]).reshape(-1, 1)
    first = np.arange(0, n * k, BLOCK)  # the first weight of each block
    absmax = kind.scales.dequantize()[first // k, kind.blocks.index()[first % k]]
    state = {"quant_type": quant_type, "blocksize": BLOCK, "dtype": DTYPE, "shape": [n, k]}
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {
        f"{name}.weight": Dense(packed, "uint8"),
        f"{name}.weight.absmax": Dense(np.ascontiguousarray(absmax), "float32"),
        f"{name}.weight.quant_map": Dense(kind.table, "float32"),
        f"{name}.{STATE}{quant_type}": Dense(raw, "uint8"),
    }
