"""The QuantizationMethod contract: a checkpoint format becomes kinds at load."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from infercore.kinds import Dense, Kind
from infercore.model_spec import LinearSpec, ModelSpec


class TensorFile(Protocol):
    """The tensors of a checkpoint, mapped from disk, not read."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """{tensor name: shape}, from the headers alone."""
        ...

    def __getitem__(self, name: str) -> Dense:
        """The tensor; its pages are read when touched. Raises CheckpointError."""
        ...


class QuantizationMethod(ABC):
    """Reads one format. Constructed once per load; holds no weights.

    aliases: what `--quantize` may also call it, where the checkpoint is of this format.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        """Whether this `quantization_config` ({} for a plain checkpoint) is of this format."""

    @classmethod
    def detect_tensors(cls, stored: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a checkpoint that has no configuration is of this format, by its tensors.

        stored: {name: shape} from the headers. Asked before any format reads it as a plain one.
        """
        del stored
        return False

    @abstractmethod
    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises UnsupportedModel for a variant that cannot be served, with what would work."""

    def inspect(self, stored: Mapping[str, tuple[int, ...]]) -> None:
        """Told once, before all that follows, which tensors the checkpoint holds.

        stored: {name: shape} from the headers, also under the names that the model's spec uses
        where those differ by a prefix. For formats whose configuration does not say everything;
        the default needs nothing more. Raises CheckpointError.
        """
        del stored

    @abstractmethod
    def kind(self, linear: LinearSpec) -> str:
        """Name of the kind that `linear` becomes; asked before a byte of weight is read."""

    @abstractmethod
    def tensors(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """{name: shape} that the checkpoint must hold in this format."""

    @abstractmethod
    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        """The matrix of one linear layer. Raises CheckpointError."""
