"""Groups of weights on a grid of 2^bits integers: which grid, which integer, and back.

w ≈ (code − zero) · scale, one scale and zero per output and group of inputs. Scales are rounded to
float16 before a code is chosen, since that is how files store them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infercore.errors import CheckpointError
from infercore.kinds import Dense, IntGrouped, pack_cells

SHRINKS = 32  # ranges that `fit` tries
SMALLEST = 0.4  # the least of them, as a share of the whole one
POWER = 2.4  # of an error, as GPTQ's own grid search counts it
LEAST_SCALE = 2.0**-24  # the smallest number of float16


@dataclass(frozen=True, slots=True)
class Scheme:
    """bits: 2, 3, 4 or 8. group_size: inputs that share a scale, None = all of them.

    symmetric: the zero is 2^(bits−1); else a whole number of its own from `least_zero` on.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    least_zero: int = 0

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def size(self, inputs: int) -> int:
        return self.group_size or inputs


@dataclass(frozen=True, slots=True)
class Grid:
    """scales, zeros: float32 of one shape, without the dimension of the group's inputs."""

    scales: Tensor
    zeros: Tensor
    top: int

    def codes(self, weight: Tensor) -> Tensor:
        """[…, S] → whole numbers of the same shape, in float32."""
        codes = torch.round(weight / self.scales[..., None]) + self.zeros[..., None]
        return codes.clamp_(0, self.top)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zeros[..., None]) * self.scales[..., None]

    def rounded(self, weight: Tensor) -> Tensor:
        return self.values(self.codes(weight))


def whole_range(weight: Tensor, scheme: Scheme, share: float | Tensor = 1.0) -> Grid:
    """The grid over a share of the range of weight [..., S], which always holds 0."""
    low, high = weight.amin(-1).clamp_(max=0) * share, weight.amax(-1).clamp_(min=0) * share
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / scheme.top).half().float().clamp_(min=LEAST_SCALE)
    if scheme.symmetric:
        return Grid(scales, torch.full_like(scales, 2 ** (scheme.bits - 1)), scheme.top)
    zeros = torch.round(-low / scales).clamp_(scheme.least_zero, scheme.top)
    return Grid(scales, zeros, scheme.top)


def fit(weight: Tensor, scheme: Scheme, importance: Tensor) -> Grid:
    """Of many ranges of weight [..., S] the one with the least error |ŵ − w|^2.4 · importance.

    importance: broadcast to the weight; for GPTQ the diagonal of the Hessian.
    """
    best = whole_range(weight, scheme)
    least = _cost(best, weight, importance)
    scales, zeros = best.scales, best.zeros
    for step in range(1, SHRINKS + 1):
        share = 1 - step * (1 - SMALLEST) / SHRINKS
        grid = whole_range(weight, scheme, share)
        cost = _cost(grid, weight, importance)
        better = cost < least
        least = torch.where(better, cost, least)
        scales = torch.where(better, grid.scales, scales)
        zeros = torch.where(better, grid.zeros, zeros)
    return Grid(scales, zeros, scheme.top)


def _cost(grid: Grid, weight: Tensor, importance: Tensor) -> Tensor:
    return (grid.rounded(weight) - weight).abs_().pow_(POWER).mul_(importance).sum(-1)


def grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    """[N, K] → [N, G, S]."""
    n, k = weight.shape
    return weight.view(n, -1, scheme.size(k))


def nearest(weight: Tensor, scheme: Scheme) -> IntGrouped:
    """Round-to-nearest over each group's whole range: float32 [N, K] → int_grouped."""
    groups = grouped(weight, scheme)
    grid = whole_range(groups, scheme)
    k = weight.shape[-1]
    group_of_row = torch.arange(k) // scheme.size(k)
    return int_grouped(grid.codes(groups).flatten(1), grid, group_of_row, scheme.bits)


def int_grouped(codes: Tensor, grid: Grid, group_of_row: Tensor, bits: int) -> IntGrouped:
    """codes [N, K], a grid of [N, G], the group of each input [K] → the kind."""
    values = codes.to(torch.uint8).numpy()
    return IntGrouped(
        bits,
        values if bits == 8 else pack_cells(values),
        Dense(np.ascontiguousarray(grid.scales.T.half().numpy()), "float16"),
        np.ascontiguousarray(grid.zeros.T.to(torch.int16).numpy()),
        group_of_row.to(torch.int32).numpy(),
    )


def require_finite(weight: Tensor, name: str) -> Tensor:
    """The matrix. Raises CheckpointError for infinities and NaN."""
    if not torch.isfinite(weight).all():
        raise CheckpointError(f"{name} holds infinities or NaN; download the checkpoint again")
    return weight
