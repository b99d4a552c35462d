"""A need of the engine's checks beside those of `needs`."""

from dataclasses import dataclass

from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore_conformance.needs import Need


@dataclass(frozen=True, slots=True)
class Planned(Need):
    """Some dimension of a step is static, so that the engine pads steps."""

    def answer(self, can: Capabilities) -> Capability:
        if can.static_dimensions:
            return FULL
        return Capability(Support.UNSUPPORTED, "it takes steps of any shape, none is padded")

    def __str__(self) -> str:
        return "static_dimensions"
