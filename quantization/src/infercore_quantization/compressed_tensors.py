"""compressed-tensors, the format of llm-compressor: integers, packed or not, and 8-bit floats.

A group of the configuration says how the layers that its `targets` name are quantized:

    pack-quantized     p.weight_packed int32[N, ceil(K bits / 32)], lowest bits first, value +
                       2^(bits−1); p.weight_shape [2]; p.weight_zero_point int32[ceil(N bits / 32),
                       G], packed along N; p.weight_g_idx int32[K], the group of each input
    int-quantized      p.weight int8[N, K]; p.weight_zero_point int8, shaped like the scale
    float-quantized    p.weight float8_e4m3fn[N, K]
    naive-quantized    one of the two before
    mxfp8-quantized    the floats again; scales are uint8, powers of two (OCP Microscaling, 2023)
    mxfp4-pack-quantized, nvfp4-pack-quantized    p.weight_packed uint8[N, K / 2], two E2M1 codes
                       a byte, the first in the low half; scales as before, or float8_e4m3fn to be
                       divided by p.weight_global_scale [1]

with p.weight_scale [1], [N, 1], [N, ceil(K / group)] or one per block of both dimensions.
Static activations have p.input_scale. Inputs that a kind's `Activation` cannot describe
(asymmetric ones, and those of other widths than 8 bits) and outputs are not rounded, which stays
closer to the model before it was quantized. So do keys and values: the cache keeps its own dtype.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import (
    E2M1,
    Activation,
    Blocks,
    Codebook4,
    Dense,
    Fp8,
    IntGrouped,
    Kind,
    pack_cells,
    uniform_groups,
)
from infercore.kinds.fp8 import DTYPES
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import QuantizationMethod, TensorFile
from infercore_quantization.compressed_schemes import Layout, Scheme, Schemes
from infercore_quantization.packing import stream_codes, stream_words, unpack_stream
from infercore_quantization.reading import (
    expected,
    is_head,
    kv_scales,
    plain,
    scalar,
    scales,
    tensor,
)

Shape = tuple[int, ...]
Int16 = NDArray[np.int16]

# what calibrated activations leave beside a layer's weight
CALIBRATED = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
)

KINDS = {
    Layout.PACKED: IntGrouped.name,
    Layout.INT: IntGrouped.name,
    Layout.FP8: Fp8.name,
    Layout.FP4: Codebook4.name,
}


class CompressedTensors(QuantizationMethod):
    """Reads what llm-compressor writes. Each layer may be quantized in its own way."""

    name: ClassVar[str] = "compressed-tensors"

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        # older ones, under `compression_config`, name no method
        own = cls.name if "config_groups" in config else None
        return bool(config.get("quant_method", own) == cls.name)

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not self.detect(config):
            raise UnsupportedModel(
                "config.json says nothing of compressed-tensors, which cannot be read without its "
                "quantization_config; serve the checkpoint without --quantize"
            )
        self._schemes = Schemes(config)
        self._stored: Mapping[str, Shape] = {}

    def inspect(self, stored: Mapping[str, Shape]) -> None:
        self._stored = stored

    def _scheme(self, linear: LinearSpec) -> Scheme | None:
        """None = not quantized. Tools leave the head alone without always saying so."""
        if is_head(linear) and f"{linear.name}.weight_scale" not in self._stored:
            return None
        return self._schemes.of(linear)

    def kind(self, linear: LinearSpec) -> str:
        scheme = self._scheme(linear)
        if scheme is None:
            return Dense.name
        return KINDS[scheme.layout]

    def tensors(self, spec: ModelSpec) -> dict[str, Shape]:
        shapes = spec.tensors()
        for linear in spec.linears():
            scheme = self._scheme(linear)
            if scheme is not None:
                del shapes[f"{linear.name}.weight"]
                shapes.update(expected(linear, self._extra(linear, scheme)))
        return shapes | kv_scales(self._stored)

    def _extra(self, linear: LinearSpec, scheme: Scheme) -> dict[str, Shape]:
        n, k = linear.out_features, linear.in_features
        grid = self._as_stored(linear, "weight_scale", scheme.grid(n, k))
        extra: dict[str, Shape] = {"weight": (n, k), "weight_scale": grid}
        if scheme.layout in (Layout.PACKED, Layout.FP4):
            del extra["weight"]
        if scheme.layout is Layout.PACKED:
            extra["weight_packed"] = (n, stream_words(k, scheme.bits))
            extra["weight_shape"] = (2,)
        if scheme.layout is Layout.FP4:
            extra["weight_packed"] = (n, (k + 1) // 2)
        if scheme.strategy == "tensor_group":
            extra["weight_global_scale"] = self._as_stored(linear, "weight_global_scale", (1,))
        if not scheme.symmetric or self._has(linear, "weight_zero_point"):
            packed = (stream_words(n, scheme.bits), grid[-1]) if scheme.packs_zeros else grid
            extra["weight_zero_point"] = packed
        if self._has(linear, "weight_g_idx"):
            extra["weight_g_idx"] = (k,)
        if scheme.static:
            extra["input_scale"] = self._as_stored(linear, "input_scale", (1,))
        for suffix in CALIBRATED:
            if self._has(linear, suffix):
                extra[suffix] = self._stored[f"{linear.name}.{suffix}"]
        return extra

    def _has(self, linear: LinearSpec, suffix: str) -> bool:
        return f"{linear.name}.{suffix}" in self._stored

    def _as_stored(self, linear: LinearSpec, suffix: str, shape: Shape) -> Shape:
        """`shape`, or what is stored if that has the same numbers: [N] for [N, 1], [] for [1]."""
        stored = self._stored.get(f"{linear.name}.{suffix}", shape)
        return stored if [d for d in stored if d > 1] == [d for d in shape if d > 1] else shape

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        scheme = self._scheme(linear)
        if scheme is None:
            return plain(linear, file)
        extra = self._extra(linear, scheme)
        grid = scheme.grid(linear.out_features, linear.in_features)
        scale = _scales(linear, scheme, file, extra["weight_scale"])
        scale = Dense(scale.data.reshape(grid), scale.dtype)
        activation = self._activation(linear, scheme, file, extra)
        if scheme.layout is Layout.FP8:
            return _fp8(linear, scheme, file, scale, activation)
        if scheme.layout is Layout.FP4:
            return self._fp4(linear, scheme, file, scale, activation)
        return self._int(linear, scheme, file, scale, activation)

    def _activation(
        self, linear: LinearSpec, scheme: Scheme, file: TensorFile, extra: Mapping[str, Shape]
    ) -> Activation | None:
        if scheme.activation is None:
            return None
        if not scheme.static:
            return Activation(scheme.activation)
        static = scalar(file, f"{linear.name}.input_scale", extra["input_scale"])
        return Activation(scheme.activation, static)

    def _int(
        self,
        linear: LinearSpec,
        scheme: Scheme,
        file: TensorFile,
        scale: Dense,
        activation: Activation | None,
    ) -> Kind:
        n, k = linear.out_features, linear.in_features
        columns = np.ascontiguousarray(scheme.per_row(scale.data, n).T)
        return IntGrouped(
            scheme.bits,
            (_packed if scheme.layout is Layout.PACKED else _unpacked)(linear, scheme, file),
            Dense(columns, scale.dtype),
            self._zeros(linear, scheme, file, columns.shape),
            self._group_of_row(linear, scheme, file, k),
            activation,
        )

    def _fp4(
        self,
        linear: LinearSpec,
        scheme: Scheme,
        file: TensorFile,
        scale: Dense,
        activation: Activation | None,
    ) -> Kind:
        n, k = linear.out_features, linear.in_features
        name = f"{linear.name}.weight_packed"
        codes = np.ascontiguousarray(tensor(file, name, ("uint8",), (n, (k + 1) // 2)).data)
        rows = Dense(np.ascontiguousarray(scheme.per_row(scale.data, n)), scale.dtype)
        blocks = Blocks(k, scheme.columns(k))
        if scheme.strategy == "tensor_group":
            name = f"{linear.name}.weight_global_scale"
            divisor = scalar(file, name, self._as_stored(linear, "weight_global_scale", (1,)))
            if not divisor > 0:
                raise CheckpointError(f"{name} is {divisor}; download the checkpoint again")
            factor = Dense(np.array(1 / divisor, np.float32), "float32")
            return Codebook4(
                codes, E2M1, blocks, Fp8.from_scales(rows.dtype, rows.data, factor), activation
            )
        return Codebook4(codes, E2M1, blocks, rows, activation)

    def _zeros(self, linear: LinearSpec, scheme: Scheme, file: TensorFile, shape: Shape) -> Int16:
        """int16[G, N], for unsigned codes."""
        middle = 1 << (scheme.bits - 1)
        name = f"{linear.name}.weight_zero_point"
        if not self._has(linear, "weight_zero_point"):
            return np.full(shape, middle, np.int16)
        stored = self._extra(linear, scheme)["weight_zero_point"]
        if scheme.packs_zeros:
            words = tensor(file, name, ("int32",), stored).data.T
            return unpack_stream(words, scheme.bits, shape[1]).astype(np.int16)
        given = tensor(file, name, ("int8",), stored).data.astype(np.int16) + np.int16(middle)
        if given.min() < 0 or given.max() >= 2 * middle:
            raise CheckpointError(
                f"{name} leaves the range of {scheme.bits} bits; download the checkpoint again"
            )
        grid = scheme.grid(linear.out_features, linear.in_features)
        return np.ascontiguousarray(scheme.per_row(given.reshape(grid), shape[1]).T)

    def _group_of_row(
        self, linear: LinearSpec, scheme: Scheme, file: TensorFile, k: int
    ) -> NDArray[np.int32]:
        if self._has(linear, "weight_g_idx"):
            index = tensor(file, f"{linear.name}.weight_g_idx", ("int32", "int64"), (k,)).data
            if (index >= 0).any():  # else it was never filled in
                return np.ascontiguousarray(index.astype(np.int32))
        return uniform_groups(k, scheme.columns(k))


def _scales(linear: LinearSpec, scheme: Scheme, file: TensorFile, shape: Shape) -> Dense:
    """The scales as they are stored; bytes that are exponents get the tag that says so."""
    name = f"{linear.name}.weight_scale"
    if not scheme.powers:
        more = ("float8_e4m3fn",) if scheme.layout is Layout.FP4 else ()
        return scales(file, name, shape, *more)
    stored = tensor(file, name, ("uint8", "float8_e8m0fnu"), shape)
    if (stored.data == 255).any():
        raise CheckpointError(f"{name} holds NaN; download the checkpoint again")
    return Dense(stored.data, "float8_e8m0fnu")


def _packed(linear: LinearSpec, scheme: Scheme, file: TensorFile) -> NDArray[np.uint8]:
    n, k = linear.out_features, linear.in_features
    name = f"{linear.name}.weight_shape"
    shape = tensor(file, name, ("int64", "int32"), (2,)).data
    if shape.tolist() != [n, k]:
        raise CheckpointError(
            f"{name} is {shape.tolist()} and the model needs {[n, k]}; download the checkpoint "
            "again, or check that config.json belongs to it"
        )
    words = tensor(
        file, f"{linear.name}.weight_packed", ("int32",), (n, stream_words(k, scheme.bits))
    )
    return stream_codes(words.data, scheme.bits, k)


def _unpacked(linear: LinearSpec, scheme: Scheme, file: TensorFile) -> NDArray[np.uint8]:
    name = f"{linear.name}.weight"
    values = tensor(file, name, ("int8",), (linear.out_features, linear.in_features)).data
    codes = values.view(np.uint8) + np.uint8(1 << (scheme.bits - 1))  # wraps: −1 and 255 are one
    if scheme.bits < 8 and codes.max() >= 1 << scheme.bits:
        raise CheckpointError(
            f"{name} holds values beyond {scheme.bits} bits; download the checkpoint again"
        )
    return pack_cells(codes) if scheme.bits <= 4 else codes


def _fp8(
    linear: LinearSpec,
    scheme: Scheme,
    file: TensorFile,
    scale: Dense,
    activation: Activation | None,
) -> Kind:
    shape = (linear.out_features, linear.in_features)
    stored = tensor(file, f"{linear.name}.weight", DTYPES, shape)
    codes = np.ascontiguousarray(stored.data)
    return Fp8.from_scales(stored.dtype, codes, scale, scheme.block, activation)
