"""Ranks that are threads of one process, and what they tell each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest

from infercore.backend import Backend, Collective
from infercore.errors import StepDropped
from infercore_conformance import Both, Level, Listed, check, thorough
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import IS_BACKEND, Device, coarse, normal
from infercore_conformance.fixtures import Numerics
from infercore_conformance.running import TIMEOUT, config_for
from infercore_conformance.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.step import Float32

T = TypeVar("T")
THREADS = Both(IS_BACKEND, Listed("collectives", "threads"))
RANKS = pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=thorough)])


class Group:
    """Backends that are the ranks of one group, each with the thread that does all of its work."""

    def __init__(self, subject: Subject, ranks: int, dtype: str) -> None:
        first = subject.cls()
        assert isinstance(first, Backend)
        self.dtype = dtype
        self._threads = [ThreadPoolExecutor(1) for _ in range(ranks)]
        config = config_for(subject.capabilities, dtype=dtype, kv_dtype=dtype, ranks=ranks)

        def ready(backend: Backend) -> tuple[Device, Collective]:
            backend.configure(config)
            return Device(backend, dtype, subject.capabilities), backend.collective(ranks)

        backends = first.peers(ranks)
        self._ends = [
            thread.submit(ready, backend).result(TIMEOUT)
            for thread, backend in zip(self._threads, backends, strict=True)
        ]

    def all(self, work: Callable[[Device, Collective], T]) -> list[T]:
        """What each rank's work returns, at the same time; raises what one of them raises."""
        pairs = zip(self._threads, self._ends, strict=True)
        futures = [thread.submit(work, *end) for thread, end in pairs]
        return [future.result(TIMEOUT) for future in futures]

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()


def _summed(group: Group, shape: tuple[int, ...]) -> "list[tuple[Tensor, Tensor]]":
    """(the sum, what was given, afterwards) of each rank, on the host."""

    def work(device: Device, collective: Collective) -> "tuple[Tensor, Tensor]":
        given = device.activations(_part(collective.rank, *shape))
        return collective.all_reduce(given).float().cpu(), given.float().cpu()

    return group.all(work)


def _part(rank: int, *shape: int) -> "Float32":
    """What a rank gives: numbers that every dtype holds."""
    return coarse(normal(40 + rank, *shape))


def _sum(ranks: int, *shape: int) -> "Tensor":
    import torch

    return torch.from_numpy(np.sum([_part(rank, *shape) for rank in range(ranks)], axis=0))


@check(
    "ops.collective.all_reduce",
    "A sum over ranks is right, has the same bits on each, and leaves what was given.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
@pytest.mark.parametrize("shape", [(1, 48), (9, 80)], ids=str)
def test_all_reduce(
    subject: Subject, numerics: Numerics, ranks: int, shape: tuple[int, ...]
) -> None:
    """Ranks that differ by one bit choose different tokens, and each then computes its own text."""
    import torch

    expected = _sum(ranks, *shape)
    for dtype in subject.capabilities.dtypes:
        group = Group(subject, ranks, dtype)
        sums = _summed(group, shape)
        group.close()
        for rank, (total, given) in enumerate(sums):
            Accuracy(numerics, dtype).check(total, expected, f"rank {rank} of {ranks}")
            assert torch.equal(total, sums[0][0]), f"rank {rank} has other bits than rank 0"
            own = torch.from_numpy(_part(rank, *shape))
            assert torch.equal(given, own), f"rank {rank} lost what it gave"


@check(
    "ops.collective.all_gather",
    "Tensors are gathered in the order of the ranks, along any dimension.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_all_gather(subject: Subject, ranks: int, dim: int) -> None:
    """Bit for bit: logits are gathered, and nothing is computed."""
    expected = np.concatenate([_part(rank, 3, 5, 7) for rank in range(ranks)], axis=dim)
    for dtype in subject.capabilities.dtypes:
        group = Group(subject, ranks, dtype)

        def work(device: Device, collective: Collective) -> "Tensor":
            part = device.activations(_part(collective.rank, 3, 5, 7))
            return collective.all_gather(part, dim).float().cpu()

        found = group.all(work)
        group.close()
        for rank, gathered in enumerate(found):
            assert np.array_equal(gathered.numpy(), expected), f"rank {rank} has something else"


@check(
    "ops.collective.who",
    "Each rank knows its number and how many there are.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
def test_who(subject: Subject, ranks: int) -> None:
    group = Group(subject, ranks, subject.capabilities.dtypes[0])
    found = group.all(lambda device, end: (device.backend.rank, end.rank, end.size))
    group.close()
    expected = [(rank, rank, ranks) for rank in range(ranks)]
    assert found == expected, f"ranks say that they are {found}, each as (backend, end, size)"


@check(
    "ops.collective.abort",
    "A rank that fails releases those that wait for it, and the group works again after it.",
    level=Level.EXTENDED,
    needs=THREADS,
)
@RANKS
def test_abort(subject: Subject, numerics: Numerics, ranks: int) -> None:
    """Waiting ranks raise StepDropped; whoever recovers waits until all have."""

    def fail(device: Device, collective: Collective) -> bool:
        if collective.rank == 0:
            collective.abort()
            return True
        try:
            collective.all_reduce(device.activations(_part(collective.rank, 2, 8)))
        except StepDropped:
            return True
        return False

    dtype = subject.capabilities.dtypes[0]
    group = Group(subject, ranks, dtype)
    expected = _sum(ranks, 2, 8)
    for _ in range(2):
        assert all(group.all(fail)), "a rank did not raise StepDropped where another one aborted"
        group.all(lambda _, collective: collective.recover())
        for total, _ in _summed(group, (2, 8)):
            Accuracy(numerics, dtype).check(total, expected, "the sum after a failure")
    group.close()
