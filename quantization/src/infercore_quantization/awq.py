"""AWQ (Lin et al. 2023), as AutoAWQ, GPTQModel and AutoRound write it.

W[n, k] = (code − zero) · scale of the group of k. The scales that the search moved from weights
into layer norms are in the norms already. A matrix p is stored in one of two versions:

                "gemm"                               "gemv"
    p.qweight   [K, N / 8], evens first (`packing`)  [N, K / 8], a stream along K
    p.qzeros    [G, N / 8], evens first              [N, Z], a stream along the groups
    p.scales    [G, N]                               [N, 8 Z], the first G of each row
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from infercore.errors import UnsupportedModel
from infercore.kinds import Dense, IntGrouped, uniform_groups
from infercore.model_spec import LinearSpec
from infercore.quantization import TensorFile
from infercore_quantization.gptq import AUTO_ROUND, auto_round_packing, method_of
from infercore_quantization.packed import (
    PackedMethod,
    Shape,
    checked_zeros,
    require_served,
    words,
)
from infercore_quantization.packing import (
    AWQ_CODES,
    awq_codes,
    awq_values,
    stream_codes,
    stream_words,
    unpack_stream,
)
from infercore_quantization.reading import choice, scales
from infercore_quantization.schemes import Scheme, Schemes

BITS = (4,)
# Two names of kernels for the layout "gemm", and the layout itself.
GEMM = ("gemm", "exllama", "ipex")
GEMV = "gemv"
GEMV_WHOLE = 128  # inputs that its kernel takes at once


class Awq(PackedMethod):
    """AWQ of 4 bits, with zero points or without."""

    name: ClassVar[str] = "awq"
    # TGI serves AWQ under --quantize gptq too, and calls a faster way to do so marlin
    aliases: ClassVar[tuple[str, ...]] = ("gptq", "marlin")

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        method = method_of(config)
        if method in AUTO_ROUND:
            return "awq" in auto_round_packing(config)
        return method == "awq" or (not method and "w_bit" in config)

    def __init__(self, config: Mapping[str, Any]) -> None:
        choice(config, "pack_dtype", "int32", ("int32",))
        version = require_served(_version(config), (*GEMM, GEMV))
        self._gemv = version == GEMV
        self._schemes = Schemes(config, BITS)

    def scheme(self, linear: LinearSpec) -> Scheme:
        return self._schemes.of(linear.name)

    def packed_shapes(self, linear: LinearSpec, scheme: Scheme) -> dict[str, Shape]:
        n, k = linear.out_features, linear.in_features
        groups = scheme.groups(k)
        if self._gemv:
            width = _gemv_width(groups, scheme)
            return {
                "qweight": (n, stream_words(k, 4)),
                "qzeros": (n, width),
                "scales": (n, width * AWQ_CODES),
            }
        width = stream_words(n, 4)
        return {"qweight": (k, width), "qzeros": (groups, width), "scales": (groups, n)}

    def unpack(self, linear: LinearSpec, scheme: Scheme, file: TensorFile) -> IntGrouped:
        name, shapes = linear.name, self.packed_shapes(linear, scheme)
        n, k, groups = linear.out_features, linear.in_features, scheme.groups(linear.in_features)
        qweight = words(file, f"{name}.qweight", shapes["qweight"])
        qzeros = words(file, f"{name}.qzeros", shapes["qzeros"])
        factors = scales(file, f"{name}.scales", shapes["scales"])
        if self._gemv:
            codes = stream_codes(qweight, 4, k)
            zeros = np.ascontiguousarray(unpack_stream(qzeros, 4, groups).T)
            factors = Dense(np.ascontiguousarray(factors.data[:, :groups].T), factors.dtype)
        else:
            codes, zeros = awq_codes(qweight)[:n], awq_values(qzeros)[:, :n]
        return IntGrouped(
            scheme.bits,
            codes,
            factors,
            checked_zeros(zeros.astype(np.int16), scheme, f"{name}.qzeros"),
            uniform_groups(k, scheme.group_size or k),
        )


def _gemv_width(groups: int, scheme: Scheme) -> int:
    """Words of zero points in a row, as AutoAWQ rounds them up. Raises UnsupportedModel."""
    size = scheme.group_size or GEMV_WHOLE
    if size not in (32, 64) and size < GEMV_WHOLE:
        raise UnsupportedModel(
            f"AWQ's version 'gemv' has groups of 32, 64 or at least {GEMV_WHOLE} inputs, and the "
            f"checkpoint says {size}; correct group_size in its quantization_config"
        )
    multiple = max(1, GEMV_WHOLE // size)
    return -(-stream_words(groups, 4) // multiple) * multiple


def _version(config: Mapping[str, Any]) -> str:
    if method_of(config) in AUTO_ROUND:
        return "gemm"
    keys = ("version", "checkpoint_format", "format")
    return str(next((config[key] for key in keys if config.get(key)), "gemm"))
