"""How the entries of one axis fall into blocks that share a scale, also after cuts inside one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Blocks:
    """Entry i lies in block (i + offset) // size.

    length: entries. size: entries of a whole block, which may exceed length.
    offset: entries of the first block that a slice cut off.
    """

    length: int
    size: int
    offset: int = 0

    @property
    def count(self) -> int:
        return -(-(self.length + self.offset) // self.size)

    def index(self) -> NDArray[np.intp]:
        """The block of every entry: intp[length]."""
        return (np.arange(self.length) + self.offset) // self.size

    def cut(self, start: int, stop: int) -> "tuple[Blocks, slice]":
        """The blocks of entries start:stop, and which of ours they are."""
        first = (start + self.offset) // self.size
        last = -(-(stop + self.offset) // self.size)
        # where one block covers all, nobody needs to know which end of it was cut
        offset = (start + self.offset) % self.size if last - first > 1 else 0
        return Blocks(stop - start, self.size, offset), slice(first, last)

    def refine(self, finer: "Blocks") -> NDArray[np.intp]:
        """Our block of each of the blocks of `finer`, whose boundaries include ours."""
        starts = np.arange(finer.count) * finer.size - finer.offset
        return (np.maximum(starts, 0) + self.offset) // self.size

    @staticmethod
    def common(parts: "Sequence[Blocks]") -> "Blocks":
        """The coarsest blocks, over one axis, whose boundaries include those of all parts."""
        if len(set(parts)) == 1:
            return parts[0]
        return Blocks(parts[0].length, math.gcd(*_steps(parts)) or parts[0].length)

    @staticmethod
    def joined(parts: "Sequence[Blocks]") -> "list[Blocks]":
        """The parts in the coarsest blocks that serve all of them, laid end to end."""
        if len(parts) == 1:
            return list(parts)
        size = math.gcd(*_steps(parts), *(part.length for part in parts[:-1]))
        return [Blocks(part.length, size) for part in parts]


def _steps(parts: Sequence[Blocks]) -> list[int]:
    """Numbers of which every inner boundary is a sum."""
    return [step for part in parts if part.count > 1 for step in (part.size, part.offset)]
