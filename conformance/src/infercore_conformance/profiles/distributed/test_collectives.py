"""What the ranks' group must keep beyond single values, which the profile "ops" checks."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from infercore.backend import Collective
from infercore_conformance import Level, check, thorough
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import Device, coarse, normal
from infercore_conformance.fixtures import Numerics
from infercore_conformance.profiles.ops.test_collective import THREADS, Group
from infercore_conformance.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.step import Float32

RANKS = pytest.mark.parametrize(
    "ranks", [3, pytest.param(2, marks=thorough), pytest.param(4, marks=thorough)]
)
ROUNDS = 12  # calls in a row, in turn of two kinds and three shapes
SHAPES = ((1, 48), (7, 48), (3, 160))


def _part(rank: int, number: int) -> "Float32":
    """What a rank gives to its call `number`."""
    return coarse(normal(1000 * rank + number, *SHAPES[number % len(SHAPES)]))


@check(
    "distributed.collective.shape",
    "A sum and a gathering have the shape, the dtype and the device of what was given.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
def test_shape(subject: Subject, ranks: int) -> None:
    """Layers go on with the result as it is; a wider dtype would double what is kept of it."""
    for dtype in subject.capabilities.dtypes:
        group = Group(subject, ranks, dtype)

        def work(device: Device, collective: Collective) -> list[str]:
            x = device.activations(_part(collective.rank, 1))
            total, whole = collective.all_reduce(x), collective.all_gather(x, -1)
            rows, columns = x.shape
            found = [(total, (rows, columns)), (whole, (rows, ranks * columns))]
            return [
                f"{tuple(y.shape)} {y.dtype} on {y.device}, not {shape} {x.dtype} on {x.device}"
                for y, shape in found
                if (tuple(y.shape), y.dtype, y.device) != (shape, x.dtype, x.device)
            ]

        wrong = [fault for faults in group.all(work) for fault in faults]
        group.close()
        assert not wrong, wrong[0]


@check(
    "distributed.collective.in_turn",
    "Calls in a row do not mix, and what an earlier one returned stays what it was.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
def test_in_turn(subject: Subject, numerics: Numerics, ranks: int) -> None:
    """Sums and gatherings of several shapes, read after the last. A buffer used again shows."""
    import torch

    dtype = subject.capabilities.dtypes[0]
    group = Group(subject, ranks, dtype)

    def work(device: Device, collective: Collective) -> "list[Tensor]":
        found = []
        for number in range(ROUNDS):
            x = device.activations(_part(collective.rank, number))
            gathers = number % 2
            found.append(collective.all_gather(x, 0) if gathers else collective.all_reduce(x))
        return [y.float().cpu() for y in found]

    of_ranks = group.all(work)
    group.close()
    for number in range(ROUNDS):
        parts = [_part(rank, number) for rank in range(ranks)]
        expected = np.concatenate(parts) if number % 2 else np.sum(parts, axis=0)
        for rank, found in enumerate(of_ranks):
            case = f"call {number} of rank {rank}"
            Accuracy(numerics, dtype).check(found[number], torch.from_numpy(expected), case)


@check(
    "distributed.collective.not_finite",
    "A NaN or an infinity of one rank is in the sum of all.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
def test_not_finite(subject: Subject, ranks: int) -> None:
    """A row whose scores are no numbers is ended; lost in a sum, it goes on with a wrong text."""
    dtype = subject.capabilities.dtypes[0]
    group = Group(subject, ranks, dtype)

    def work(device: Device, collective: Collective) -> list[float]:
        values = np.ones((1, 3), np.float32)
        if collective.rank == ranks - 1:
            values[0, :2] = np.nan, np.inf
        total: list[float] = collective.all_reduce(device.activations(values))[0].tolist()
        return total

    for rank, (lost, infinite, sound) in enumerate(group.all(work)):
        assert np.isnan(lost), f"rank {rank}: 1 + NaN is {lost}"
        assert infinite == np.inf, f"rank {rank}: 1 + infinity is {infinite}"
        assert sound == ranks, f"rank {rank}: a sum of {ranks} ones is {sound}"
    group.close()
