"""Rotary position embedding: the angles, and how each `rope_type` stretches them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infercore.layers.common import Layer, Source
from infercore.model_spec import RopeSpec


def frequencies(spec: RopeSpec) -> tuple[Tensor, float]:
    """(inverse frequencies float32 [dim / 2], factor of cos and sin)."""
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim
    inverse = 1.0 / spec.theta**exponents
    scaling = spec.scaling
    kind = scaling.get("rope_type", "default")
    if kind == "linear":  # position interpolation, Chen et al. 2023
        return inverse / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(inverse, scaling), 1.0
    if kind == "yarn":
        return _yarn(inverse, spec)
    assert kind == "default", kind
    return inverse, 1.0


def _llama3(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1 (Grattafiori et al. 2024): long waves stretched, short kept, a ramp between."""
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    keep = ((rotations - low) / (high - low)).clamp(0, 1)
    blended: Tensor = (1 - keep) * inverse / factor + keep * inverse
    return blended


def _yarn(inverse: Tensor, spec: RopeSpec) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023), "NTK by parts", with its factor of the attention's temperature."""
    scaling = spec.scaling
    factor = scaling["factor"]

    def dimension(rotations: float) -> float:
        waves = scaling["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return spec.dim * math.log(waves) / (2 * math.log(spec.theta))

    low = dimension(scaling.get("beta_fast", 32))
    high = dimension(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    span = high - low or 0.001
    stretch = ((torch.arange(spec.dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    blended = inverse / factor * stretch + inverse * (1 - stretch)
    return blended, _yarn_temperature(scaling)


def _yarn_temperature(scaling: Mapping[str, Any]) -> float:
    def mscale(weight: float) -> float:
        factor = scaling["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)


class Rotary(Layer):
    """cos and sin of every position up to the longest sequence, looked up once per step."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: RopeSpec, length: int) -> None:
        super().__init__()
        self.spec = spec
        self.length = length

    def load(self, source: Source) -> None:
        inverse, factor = frequencies(self.spec)
        angles = torch.arange(self.length, dtype=torch.float32)[:, None] * inverse
        cos, sin = angles.cos() * factor, angles.sin() * factor
        self.register_buffer("cos", torch.cat((cos, cos), -1)[:, None].to(source.device))
        self.register_buffer("sin", torch.cat((-sin, sin), -1)[:, None].to(source.device))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] → cos, sin float32 [T, 1, dim]; see `Ops.rope`."""
        return self.cos[positions], self.sin[positions]
