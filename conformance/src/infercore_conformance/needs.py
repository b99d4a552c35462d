"""What a check needs of a backend, as a question to its declared capabilities."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from infercore.capabilities import FULL, UNKNOWN, Capabilities, Capability, Support


class Need(ABC):
    """A question that `Capabilities` answers in one of the five ways. `str` names it."""

    @abstractmethod
    def answer(self, can: Capabilities) -> Capability:
        """How far the backend says that it goes."""


@dataclass(frozen=True, slots=True)
class Feature(Need):
    """A feature of `Capabilities` ("late_inputs"), or else a name in its `extras`."""

    name: str

    def answer(self, can: Capabilities) -> Capability:
        value = getattr(can, self.name, None)
        return value if isinstance(value, Capability) else can.extras.get(self.name, UNKNOWN)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Both(Need):
    """Two needs at once; the lesser answer counts."""

    first: Need
    second: Need

    def answer(self, can: Capabilities) -> Capability:
        answers = (self.first.answer(can), self.second.answer(can))
        return min(answers, key=lambda answer: _ORDER.index(answer.support))

    def __str__(self) -> str:
        return f"{self.first} and {self.second}"


_ORDER = (
    Support.UNSUPPORTED,
    Support.NOT_IMPLEMENTED,
    Support.UNKNOWN,
    Support.VERSIONED,
    Support.FULL,
)


@dataclass(frozen=True, slots=True)
class AtLeast(Need):
    """A limit of `Capabilities` that is a number: AtLeast("max_in_flight", 2)."""

    limit: str
    value: int

    def answer(self, can: Capabilities) -> Capability:
        declared: int = getattr(can, self.limit)
        if declared >= self.value:
            return FULL
        return Capability(Support.UNSUPPORTED, f"{self.limit} is {declared}")

    def __str__(self) -> str:
        return f"{self.limit} >= {self.value}"


@dataclass(frozen=True, slots=True)
class Listed(Need):
    """A value in one of the lists of `Capabilities`: Listed("dtypes", "bfloat16")."""

    limit: str
    value: str | int

    def answer(self, can: Capabilities) -> Capability:
        declared: tuple[str | int, ...] | None = getattr(can, self.limit)
        if declared is None or self.value in declared:
            return FULL
        names = ", ".join(map(str, declared)) or "empty"
        return Capability(Support.UNSUPPORTED, f"{self.limit} is {names}")

    def __str__(self) -> str:
        return f"{self.value} in {self.limit}"
