"""The shapes that the device was compiled for, and what compiling them took."""

import time
from collections.abc import Sequence

from infercore.capabilities import Dimension, StaticDimension
from infercore.errors import StepFailed
from infercore.executor import Bucket, Progress
from infercore.step import Step
from infercore_sim.rules import require

Shape = tuple[int, ...]


class Shapes:
    """Compiles buckets and refuses steps of any other shape.

    A compile takes no time, only seconds of the device's own clock, which stands beside the real
    one: warm-up stops where the two together pass the deadline.

    compiles: how many there were. seconds: what they would have taken.
    """

    def __init__(self, static: Sequence[StaticDimension]) -> None:
        self._static = static
        self._each = max((s.compile_seconds for s in static), default=0.0)
        self._planned: set[Shape] = set()
        self.compiles = 0
        self.seconds = 0.0

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        """As `Executor.warm_up`. What is compiled stays so, and is not compiled again."""
        spent = 0.0
        progress("warm up", 0, len(buckets))
        for done, bucket in enumerate(buckets):
            shape = self._shape(bucket.tokens, bucket.rows, bucket.blocks)
            if shape not in self._planned:
                if done and time.monotonic() + spent > deadline:
                    return done
                self._compile(shape, bucket)
                spent += self._each
            progress("warm up", done + 1, len(buckets))
        return len(buckets)

    def check(self, step: Step) -> None:
        """Raises StepFailed for a step whose shape was not planned."""
        shape = self._shape(step.num_tokens, step.num_rows, step.block_table.shape[-1])
        if shape not in self._planned and self._static:
            raise StepFailed(
                f"step {step.step_id} has {self._named(shape)}, which is none of the "
                f"{len(self._planned)} shapes that warm-up compiled; pad it into one of them",
                retryable=False,
            )

    def _compile(self, shape: Shape, bucket: Bucket) -> None:
        for size, static in zip(shape, self._static, strict=True):
            require(
                size > 0 and size % static.multiple_of == 0,
                f"{bucket}: {static.dimension.value} is no multiple of {static.multiple_of}",
            )
        self._planned.add(shape)
        self.compiles += 1
        self.seconds += self._each

    def _shape(self, tokens: int, rows: int, blocks: int) -> Shape:
        sizes = {Dimension.TOKENS: tokens, Dimension.ROWS: rows, Dimension.BLOCKS: blocks}
        return tuple(sizes[static.dimension] for static in self._static)

    def _named(self, shape: Shape) -> str:
        return ", ".join(
            f"{size} {static.dimension.value}"
            for size, static in zip(shape, self._static, strict=True)
        )
