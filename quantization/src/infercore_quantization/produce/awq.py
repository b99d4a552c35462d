"""AWQ (Lin et al. 2023): inputs that matter are scaled up before rounding, and outliers clipped.

x Wᵀ = (x / s)(W s)ᵀ, so s goes into the weights, and 1 / s into whatever makes x: the norm before
it, or the matrix. Errors are counted in outputs, exactly: E|x ΔWᵀ|² = tr(ΔW H ΔWᵀ), H = E[x xᵀ].
"""

import torch
from torch import Tensor

from infercore_quantization.produce.rounding import Grid, Scheme, grouped, whole_range

STEPS = 20  # exponents tried in [0, 1)
CLIPS = 10  # ranges tried, down to CLIPPED of the whole one
CLIPPED = 0.5
LEAST = 1e-4


def output_error(change: Tensor, moments: Tensor) -> float:
    """E|x ΔWᵀ|², summed over the outputs. change [N, K], moments [K, K]."""
    return ((change @ moments) * change).sum().item()


def search_scales(weight: Tensor, magnitude: Tensor, moments: Tensor, scheme: Scheme) -> Tensor:
    """The s [K] under which rounding W s does least harm; 1 everywhere if none helps.

    weight [N, K]; magnitude [K] = E|x|. Tried are x^α and x^α / w^(1−α), w being each input's
    mean share of the largest weight of its group (as AutoAWQ does).
    """
    x = magnitude.clamp(min=LEAST)
    groups = grouped(weight.abs(), scheme)
    w = (groups / groups.amax(-1, keepdim=True).clamp(min=LEAST)).flatten(1).mean(0) + LEAST
    best, least = torch.ones_like(x), _scaled_error(weight, torch.ones_like(x), moments, scheme)
    for step in range(STEPS):
        alpha = step / STEPS
        for scales in (x**alpha, x**alpha / w ** (1 - alpha)):
            s = scales.clamp(min=LEAST)
            s = s / (s.max() * s.min()).sqrt()
            error = _scaled_error(weight, s, moments, scheme)
            if error < least:
                best, least = s, error
    return best


def _scaled_error(weight: Tensor, s: Tensor, moments: Tensor, scheme: Scheme) -> float:
    groups = grouped(weight * s, scheme)
    rounded = whole_range(groups, scheme).rounded(groups).flatten(1) / s
    return output_error(rounded - weight, moments)


def search_clip(weight: Tensor, moments: Tensor, scheme: Scheme) -> Grid:
    """The grid of each output and group whose range does least harm to that group's output.

    weight [N, K] → scales and zeros [N, G]. Weights beyond the range get its last codes.
    """
    groups = grouped(weight, scheme)
    size = groups.shape[-1]
    count = groups.shape[1]
    own = moments.view(count, size, count, size)
    own = own.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [G, S, S], of each group's inputs
    best = whole_range(groups, scheme)
    scales, zeros = best.scales, best.zeros
    least = _group_errors(best, groups, own)
    for step in range(1, CLIPS + 1):
        grid = whole_range(groups, scheme, 1 - step * (1 - CLIPPED) / CLIPS)
        errors = _group_errors(grid, groups, own)
        better = errors < least
        least = torch.where(better, errors, least)
        scales = torch.where(better, grid.scales, scales)
        zeros = torch.where(better, grid.zeros, zeros)
    return Grid(scales, zeros, scheme.top)


def _group_errors(grid: Grid, groups: Tensor, own: Tensor) -> Tensor:
    """[N, G]."""
    change = grid.rounded(groups) - groups
    return (torch.einsum("ngs,gst->ngt", change, own) * change).sum(-1)
