"""Whole steps that warm-up captured, and what the host has to launch for those that it did not."""

from collections.abc import Iterable

from infercore.executor import Bucket
from infercore.step import Step


class Graphs:
    """Captured steps by their shape. A device that captures none is told every operation.

    captures: how many there were. launches: how often the host started work of a step: once for
    one that is replayed, and for any other once per operation.
    """

    def __init__(self, *, can_capture: bool) -> None:
        self._can_capture = can_capture
        self._captured: set[Bucket] = set()
        self.launches = 0

    @property
    def captures(self) -> int:
        return len(self._captured)

    def capture(self, buckets: Iterable[Bucket]) -> None:
        if self._can_capture:
            self._captured.update(buckets)

    def launch(self, step: Step, operations: int) -> None:
        """Count what `step` took, whose computation has so many operations."""
        shape = Bucket(step.num_tokens, step.num_rows, step.block_table.shape[-1])
        self.launches += 1 if shape in self._captured else operations
