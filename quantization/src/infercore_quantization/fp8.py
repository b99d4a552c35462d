"""FP8 checkpoints, W[n, k] = weight · scale, as the tools of several makers write them.

    p.weight            float8_e4m3fn[N, K]
    p.weight_scale      one for the matrix, [] or [1] (AutoFP8, ModelOpt), or one per output,
                        [N, 1] or [N] (FBGEMM)
    p.weight_scale_inv  one per block, [ceil(N / 128), ceil(K / 128)] (DeepSeek-V3, 2024), or one;
                        multiplied too, in spite of its name
    p.input_scale, p.activation_scale    one for all inputs, where activations are static

Scales of the key-value cache are known and not needed: the cache keeps its own dtype. FBGEMM's
bound on the scales of activations belongs to its kernel, which rounds inputs; it changes no weight.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from infercore.errors import UnsupportedModel
from infercore.kinds import Activation, Dense, Fp8, Kind
from infercore.kinds.fp8 import DTYPES
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import QuantizationMethod, TensorFile
from infercore_quantization.on_load import fp8_rows, in_parts
from infercore_quantization.reading import (
    choice,
    expected,
    is_head,
    kv_scales,
    names,
    plain,
    scalar,
    scales,
    skipped,
    tensor,
)

Shape = tuple[int, ...]

METHODS = ("fp8", "fbgemm_fp8", "modelopt", "modelopt_fp8")
WEIGHT_SCALES = ("weight_scale_inv", "weight_scale")
SKIPPED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
INPUT_SCALES = ("input_scale", "activation_scale")


class Fp8Format(QuantizationMethod):
    """8-bit float files; of a 16-bit checkpoint it makes e4m3 with a scale per output."""

    name: ClassVar[str] = "fp8"

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") in METHODS

    def __init__(self, config: Mapping[str, Any]) -> None:
        method = config.get("quant_method")
        if config and not self.detect(config):
            raise UnsupportedModel(
                f"the checkpoint is quantized by {method!r} and not in a format of fp8 "
                f"({', '.join(METHODS)}); serve it without --quantize"
            )
        if str(method).startswith("modelopt") and config.get("quant_algo") != "FP8":
            raise UnsupportedModel(
                f"quantization_config: quant_algo is {config.get('quant_algo')!r}; of ModelOpt's "
                "formats FP8 is served"
            )
        choice(config, "fmt", "e4m3", ("e4m3", "float8_e4m3fn"))
        choice(config, "expert_dtype", "fp8", ("fp8",))
        self._on_load = not config
        self._skip = names(config, *SKIPPED)
        scheme = choice(config, "activation_scheme", _default_scheme(method), ("dynamic", "static"))
        self._static = scheme == "static"
        self._block = _block(config)
        self._stored: Mapping[str, Shape] = {}

    def inspect(self, stored: Mapping[str, Shape]) -> None:
        self._stored = stored

    def kind(self, linear: LinearSpec) -> str:
        return Fp8.name if self._quantized(linear) else Dense.name

    def _quantized(self, linear: LinearSpec) -> bool:
        if not self._on_load and self._suffix(linear, WEIGHT_SCALES) is not None:
            return True
        # a scale that is absent though nothing excuses it is then reported as missing
        return not is_head(linear) and not skipped(linear.name, self._skip)

    def _suffix(self, linear: LinearSpec, suffixes: tuple[str, ...]) -> str | None:
        """The first of `suffixes` under which the layer has a tensor."""
        return next((s for s in suffixes if f"{linear.name}.{s}" in self._stored), None)

    def tensors(self, spec: ModelSpec) -> dict[str, Shape]:
        shapes = spec.tensors()
        if self._on_load:
            return shapes
        for linear in spec.linears():
            if self._quantized(linear):
                shapes |= expected(linear, self._extra(linear))
        return shapes | kv_scales(self._stored)

    def _extra(self, linear: LinearSpec) -> dict[str, Shape]:
        weight = self._suffix(linear, WEIGHT_SCALES) or WEIGHT_SCALES[self._block is None]
        extra: dict[str, Shape] = {"weight": (linear.out_features, linear.in_features)}
        extra[weight] = self._scale_shape(linear, weight)
        if self._static or self._suffix(linear, INPUT_SCALES):
            given = self._suffix(linear, INPUT_SCALES) or INPUT_SCALES[0]
            extra[given] = _one(self._stored.get(f"{linear.name}.{given}"))
        if f"{linear.name}.input_scale_ub" in self._stored:
            extra["input_scale_ub"] = _one(self._stored[f"{linear.name}.input_scale_ub"])
        return extra

    def _scale_shape(self, linear: LinearSpec, suffix: str) -> Shape:
        n, k = linear.out_features, linear.in_features
        if self._block is not None:
            return (-(-n // self._block[0]), -(-k // self._block[1]))
        stored = self._stored.get(f"{linear.name}.{suffix}")
        return stored if stored in ((n,), (n, 1)) else _one(stored)

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        if not self._quantized(linear):
            return plain(linear, file)
        if self._on_load:
            return in_parts(plain(linear, file), fp8_rows)
        extra = self._extra(linear)
        weight = tensor(file, f"{linear.name}.weight", DTYPES, extra["weight"])
        suffix = next(suffix for suffix in WEIGHT_SCALES if suffix in extra)
        scale = scales(file, f"{linear.name}.{suffix}", extra[suffix], "float8_e8m0fnu")
        given = next((suffix for suffix in INPUT_SCALES if suffix in extra), None)
        static = None if given is None else scalar(file, f"{linear.name}.{given}", extra[given])
        codes = np.ascontiguousarray(weight.data)
        activation = Activation(weight.dtype, static if self._static else None)
        return Fp8.from_scales(weight.dtype, codes, scale, self._block, activation)


def _default_scheme(method: object) -> str:
    """ModelOpt calibrates its activations, the others need not."""
    return "static" if str(method).startswith("modelopt") else "dynamic"


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(rows, columns) of the weights that share a scale; None = a row, or all of them."""
    size = config.get("weight_block_size")
    if size is None:
        return None
    if not isinstance(size, list) or [type(s) for s in size] != [int, int] or min(size) <= 0:
        raise UnsupportedModel(
            f"quantization_config: weight_block_size is {size!r}; it must be two positive integers"
        )
    return size[0], size[1]


def _one(stored: Shape | None) -> Shape:
    """The shape that a single number has in this file."""
    return stored if stored in ((), (1,), (1, 1)) else ()
