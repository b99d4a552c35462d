"""Each method of `infercore quantize`: a layer's matrices, turned into a file's tensors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infercore.errors import ConfigError
from infercore.kinds import FP4, NF4, Dense, IntGrouped, Kind
from infercore.model_spec import LayerSpec, LinearSpec
from infercore.quantization import QuantizationMethod
from infercore_quantization.awq import Awq
from infercore_quantization.bitsandbytes import Bitsandbytes
from infercore_quantization.gptq import Gptq
from infercore_quantization.on_load import codebook4, in_parts
from infercore_quantization.produce import folding
from infercore_quantization.produce.awq import output_error, search_clip, search_scales
from infercore_quantization.produce.block import Block, Stage, stages_of
from infercore_quantization.produce.bnb_writer import bitsandbytes_tensors
from infercore_quantization.produce.gptq import gptq
from infercore_quantization.produce.overlay import Overlay
from infercore_quantization.produce.packed_writer import awq_tensors, gptq_tensors, require_whole
from infercore_quantization.produce.rounding import (
    Grid,
    grouped,
    int_grouped,
    nearest,
    require_finite,
    whole_range,
)
from infercore_quantization.produce.settings import Settings


@dataclass(slots=True)
class Made:
    """A layer's new tensors. errors: {linear layer: share of what it was that is wrong now}.

    With calibration E|x ΔWᵀ|² / E|x Wᵀ|², else |ΔW|² / |W|².
    """

    tensors: dict[str, Dense] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


class Method(ABC):
    """Writes one format. passes: how often it runs a layer over the calibration text."""

    passes: int = 0
    reader: type[QuantizationMethod]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The `quantization_config` of the files."""

    def require(self, linear: LinearSpec) -> None:
        """Raises ConfigError or UnsupportedModel if the layer cannot be quantized so."""
        require_whole(linear, self.settings.bits)
        size = self.settings.scheme.group_size
        if size is not None and linear.in_features % size:
            raise ConfigError(
                f"{linear.name} has {linear.in_features} inputs, which groups of {size} do not "
                "divide; choose another --group-size, or -1 for one group"
            )


class Uncalibrated(Method):
    """Needs nothing but the weights."""

    def quantize(self, layer: LayerSpec, weights: Overlay) -> Made:
        made = Made()
        for stage in stages_of(layer):
            for linear in stage.specs:
                weight = require_finite(weights.matrix(linear.name), f"{linear.name}.weight")
                kind = self.rounded(weight)
                made.tensors |= self.tensors(linear, kind)
                change = torch.from_numpy(kind.dequantize()) - weight
                made.errors[linear.name] = _share(change, weight)
        return made

    @abstractmethod
    def rounded(self, weight: Tensor) -> Kind:
        """W float32 [N, K] as a kind."""

    @abstractmethod
    def tensors(self, linear: LinearSpec, kind: Any) -> dict[str, Dense]:
        """What the file holds of a kind that `rounded` made."""


class Calibrated(Method):
    """Runs the layer over a text, to know which errors matter."""

    @abstractmethod
    def quantize(self, block: Block, hidden: Tensor) -> Made:
        """hidden [R, T, E]: what comes into the layer. Other tensors may be replaced in `block`."""


class Nearest(Uncalibrated):
    """int4 and int8: round-to-nearest, in GPTQ's files."""

    reader = Gptq

    def config(self) -> dict[str, Any]:
        return _gptq_config(self.settings, desc_act=False)

    def rounded(self, weight: Tensor) -> Kind:
        return nearest(weight, self.settings.scheme)

    def tensors(self, linear: LinearSpec, kind: Any) -> dict[str, Dense]:
        return gptq_tensors(linear.name, kind)


class FourBitFloat(Uncalibrated):
    """NF4 and FP4, in bitsandbytes' files."""

    reader = Bitsandbytes

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": self.settings.method,
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
        }

    def require(self, linear: LinearSpec) -> None:
        """Blocks go through all rows, so that any shape will do."""

    def rounded(self, weight: Tensor) -> Kind:
        table = {"nf4": NF4, "fp4": FP4}[self.settings.method]
        return in_parts(Dense(weight.numpy(), "float32"), lambda part: codebook4(part, table))

    def tensors(self, linear: LinearSpec, kind: Any) -> dict[str, Dense]:
        return bitsandbytes_tensors(linear.name, kind, self.settings.method)


class GptqMethod(Calibrated):
    """GPTQ; each stage of a layer is searched over what the stages before it now compute."""

    passes = 4
    reader = Gptq

    def config(self) -> dict[str, Any]:
        search = self.settings.search
        config = _gptq_config(self.settings, search.act_order and not search.static_groups)
        return {
            **config,
            "damp_percent": search.damping,
            "static_groups": search.static_groups,
            "true_sequential": True,
        }

    def quantize(self, block: Block, hidden: Tensor) -> Made:
        made = Made()
        for stage in block.stages:
            (moments,) = block.moments([stage], hidden)
            matrices = _matrices(block, stage)
            weight = folding.joined(stage, matrices)
            whole = gptq(weight, moments.second, self.settings.scheme, self.settings.search)
            for linear, kind in _apart(stage, whole):
                block.weights.put_kinds({linear.name: kind})
                made.tensors |= gptq_tensors(linear.name, kind)
                was = matrices[linear.name]
                change = torch.from_numpy(kind.dequantize()) - was
                made.errors[linear.name] = _share(change, was, moments.second)
            block.reload()
        return made


class AwqMethod(Calibrated):
    """AWQ: scales for every stage whose inputs something can divide, then clipping."""

    passes = 1
    reader = Awq

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": self.settings.bits,
            "group_size": self.settings.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }

    def quantize(self, block: Block, hidden: Tensor) -> Made:
        layer, scheme, made = block.spec, self.settings.scheme, Made()
        measured = dict(zip(block.stages, block.moments(block.stages, hidden), strict=True))
        matrices: dict[str, Tensor] = {}
        for stage in block.stages:
            matrices |= _matrices(block, stage)
        for stage, moments in measured.items():
            if not folding.shares(layer, stage):
                continue
            magnitude = folding.shared_magnitude(layer, stage, moments.magnitude)
            weight = folding.joined(stage, matrices)
            s = search_scales(weight, magnitude, moments.second, scheme)
            s = folding.shared_magnitude(layer, stage, s)
            folding.fold(layer, stage, s, block.weights, matrices, moments)
        for stage, moments in measured.items():
            clipped = stage.name != "qkv"  # scores of q and k suffer from clipping (Lin et al.)
            for linear in stage.specs:
                weight = matrices[linear.name]
                grid = search_clip(weight, moments.second, scheme) if clipped else None
                kind = self._rounded(weight, grid)
                made.tensors |= awq_tensors(linear.name, kind)
                change = torch.from_numpy(kind.dequantize()) - weight
                made.errors[linear.name] = _share(change, weight, moments.second)
        return made

    def _rounded(self, weight: Tensor, grid: Grid | None) -> IntGrouped:
        scheme = self.settings.scheme
        groups = grouped(weight, scheme)
        grid = grid or whole_range(groups, scheme)
        k = weight.shape[1]
        group_of_row = torch.arange(k) // scheme.size(k)
        return int_grouped(grid.codes(groups).flatten(1), grid, group_of_row, scheme.bits)


def method_of(settings: Settings) -> Uncalibrated | Calibrated:
    """The method that the settings name."""
    classes: Mapping[str, type[Uncalibrated | Calibrated]] = {
        "gptq": GptqMethod,
        "awq": AwqMethod,
        "int4": Nearest,
        "int8": Nearest,
        "nf4": FourBitFloat,
        "fp4": FourBitFloat,
    }
    return classes[settings.method](settings)


def _matrices(block: Block, stage: Stage) -> dict[str, Tensor]:
    return {
        linear.name: require_finite(block.weights.matrix(linear.name), f"{linear.name}.weight")
        for linear in stage.specs
    }


def _apart(stage: Stage, whole: IntGrouped) -> list[tuple[LinearSpec, IntGrouped]]:
    """The stage's layers, each with its rows of a matrix that was made for all of them."""
    parts, at = [], 0
    for linear in stage.specs:
        parts.append((linear, whole.slice_n(at, at + linear.out_features)))
        at += linear.out_features
    return parts


def _share(change: Tensor, was: Tensor, moments: Tensor | None = None) -> float:
    if moments is None:
        error, whole = change.square().sum().item(), was.square().sum().item()
    else:
        error, whole = output_error(change, moments), output_error(was, moments)
    return error / whole if whole > 0 else 0.0


def _gptq_config(settings: Settings, desc_act: bool) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": desc_act,
        "sym": settings.symmetric,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
    }
