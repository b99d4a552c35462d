"""The least that a backend can be: core's own operations and attention, in torch on the CPU.

Defects are planted in it that other backends do without noticing, such as a block that is not
cleared: core's default attention relies on it.
"""

from typing import TYPE_CHECKING, ClassVar

from infercore.backend import Backend
from infercore.executor import Probe

if TYPE_CHECKING:
    import torch


class PlainBackend(Backend):
    """Nothing is overridden, so nothing is fast."""

    name: ClassVar[str] = "plain"

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, devices=("a CPU that torch runs on",))

    def device(self, rank: int) -> "torch.device":
        import torch

        return torch.device("cpu")

    def memory(self) -> tuple[int, int]:
        return self.config.memory_budget or 2**30, 0
