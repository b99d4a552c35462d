"""GPTQ (Frantar et al. 2022): each input is rounded, and those after it make up for it.

For a matrix W [N, K] and the second moments H = E[x xᵀ] of its inputs, the error of rounding
input i is spread over the inputs after it by row i of U, where UᵀU = H⁻¹ and U is upper triangular
(algorithm 1 there). Inputs are taken in blocks, so that most of the update is one product.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from infercore.errors import CheckpointError
from infercore.kinds import IntGrouped
from infercore_quantization.produce.rounding import Grid, Scheme, fit, grouped, int_grouped

BLOCK = 128  # inputs whose updates are made one by one
ATTEMPTS = 8  # times that damping is raised where H is no positive matrix


@dataclass(frozen=True, slots=True)
class Search:
    """How GPTQ goes through a matrix.

    damping: added to the diagonal of H, as a share of its mean. act_order: inputs with large
    moments first. static_groups: groups are neighbours all the same, with scales that are found
    before the search; else a group is the next `group_size` inputs in the order of the search.
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True


def gptq(weight: Tensor, moments: Tensor, scheme: Scheme, search: Search) -> IntGrouped:
    """float32 W [N, K] and H [K, K] → int_grouped. Raises CheckpointError if H has no inverse."""
    weight, moments = weight.clone(), moments.clone()
    diagonal = moments.diagonal()
    dead = diagonal == 0  # inputs that were never anything but 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    k, size = weight.shape[1], scheme.size(weight.shape[1])
    importance = diagonal.clone()
    order = torch.argsort(importance, descending=True) if search.act_order else torch.arange(k)
    static = _static(weight, scheme, importance) if search.static_groups else None
    group_of = order // size if search.static_groups else torch.arange(k) // size
    walk = _Walk(weight[:, order], importance[order], group_of, scheme, static)
    walk.run(_inverse_root(moments[order][:, order], search.damping))
    back = torch.argsort(order)
    scales, zeros = torch.stack(walk.scales, 1), torch.stack(walk.zeros, 1)
    grid = Grid(scales, zeros, scheme.top)
    return int_grouped(walk.codes[:, back], grid, group_of[back], scheme.bits)


def _static(weight: Tensor, scheme: Scheme, importance: Tensor) -> Grid:
    groups = grouped(weight, scheme)
    return fit(groups, scheme, importance.view(groups.shape[1:]))


class _Walk:
    """One pass over the inputs of `weight` [N, K], which are in the order of the search.

    codes: float32 [N, K]. scales, zeros: [N] for each group, found when its first input comes.
    """

    def __init__(
        self,
        weight: Tensor,
        importance: Tensor,
        group_of: Tensor,
        scheme: Scheme,
        static: Grid | None,
    ) -> None:
        self.weight = weight
        self.importance = importance
        self.group_of = group_of.tolist()
        self.scheme = scheme
        self.codes = torch.empty_like(weight)
        self.static = static is not None
        self.scales = list(static.scales.unbind(1)) if static is not None else []
        self.zeros = list(static.zeros.unbind(1)) if static is not None else []

    def run(self, root: Tensor) -> None:
        """root: U [K, K]."""
        k = self.weight.shape[1]
        for start in range(0, k, BLOCK):
            stop = min(start + BLOCK, k)
            errors = self._block(root, start, stop)
            self.weight[:, stop:] -= errors @ root[start:stop, stop:]

    def _block(self, root: Tensor, start: int, stop: int) -> Tensor:
        """Round inputs start…stop, and return their errors [N, stop − start], scaled for U."""
        block = self.weight[:, start:stop]  # a view: updates within the block are made in place
        errors = torch.empty_like(block)
        size = self.scheme.size(self.weight.shape[1])
        for place in range(stop - start):
            at = start + place
            if not self.static and at % size == 0:
                # inputs of the group beyond this block lack its updates yet
                pending = errors[:, :place] @ root[start:at, at : at + size]
                self._fit_group(at, pending, stop)
            grid = self._grid(at)
            column = block[:, place, None]
            codes = grid.codes(column)
            self.codes[:, at] = codes[:, 0]
            errors[:, place] = (column - grid.values(codes))[:, 0] / root[at, at]
            block[:, place + 1 :] -= errors[:, place, None] * root[at, at + 1 : stop]
        return errors

    def _fit_group(self, at: int, pending: Tensor, stop: int) -> None:
        size = self.scheme.size(self.weight.shape[1])
        group = self.weight[:, at : at + size].clone()
        group[:, stop - at :] -= pending[:, stop - at :]
        grid = fit(group, self.scheme, self.importance[at : at + size])
        self.scales.append(grid.scales)
        self.zeros.append(grid.zeros)

    def _grid(self, at: int) -> Grid:
        group = self.group_of[at]
        return Grid(self.scales[group], self.zeros[group], self.scheme.top)


def _inverse_root(moments: Tensor, damping: float) -> Tensor:
    """Upper triangular U with UᵀU = H⁻¹; damped ten times as much whenever that fails."""
    share = damping * moments.diagonal().mean()
    for attempt in range(ATTEMPTS):
        damped = moments.clone()
        damped.diagonal().add_(share * 10**attempt)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return cast("Tensor", root)
    raise CheckpointError(
        "the second moments of a layer's inputs have no inverse, even with strong damping; "
        "calibrate with more text, and check that the model computes finite numbers on it"
    )
