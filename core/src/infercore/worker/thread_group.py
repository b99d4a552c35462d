"""Ranks that are threads of one process, and the collective through which they talk."""

import threading

import torch
from torch import Tensor

from infercore.errors import StepDropped

THREADS = "threads"  # what a backend declares among `Capabilities.collectives`


class ThreadGroup:
    """A process group without processes; `member` is each rank's end of it.

    Every rank computes a sum for itself, in float32 and in the order of the ranks, so all get the
    same bits, in every run. It is for devices that finish a call before they return from it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.offered: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size)
        # all ranks come here after they left the barrier, broken or not
        self.mended = threading.Barrier(size, action=self.barrier.reset)

    def member(self, rank: int) -> "ThreadMember":
        return ThreadMember(self, rank)


class ThreadMember:
    """The `Collective` of one rank of a ThreadGroup."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.group = group
        self.rank = rank
        self.size = group.size

    def all_reduce(self, x: Tensor) -> Tensor:
        first, *others = self._offer(x)
        total = first.to(torch.float32, copy=True)
        for other in others:
            total += other
        self._withdraw()
        return total.to(x.dtype)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        gathered = torch.cat(self._offer(x), dim)
        self._withdraw()
        return gathered

    def abort(self) -> None:
        self.group.barrier.abort()

    def recover(self) -> None:
        self.group.mended.wait()

    def _offer(self, x: Tensor) -> list[Tensor]:
        """What each rank has, on this one's device; to be read before `_withdraw`."""
        self.group.offered[self.rank] = x
        self._wait()
        return [offered.to(x.device) for offered in self.group.offered if offered is not None]

    def _withdraw(self) -> None:
        self._wait()
        self.group.offered[self.rank] = None

    def _wait(self) -> None:
        try:
            self.group.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise StepDropped(
                f"rank {self.rank} was released because another rank failed, whose error says why"
            ) from error
