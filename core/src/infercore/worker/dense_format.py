"""The plain checkpoint format: matrices in float32, float16 or bfloat16, each a tensor of its own.

It is also the plugin module that registers it, by the same door as anybody else's format.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from infercore.errors import CheckpointError
from infercore.hookspecs import hookimpl
from infercore.kinds import Dense, Kind
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import QuantizationMethod, TensorFile

API_VERSION = (1, 0)

DTYPES = ("float32", "float16", "bfloat16")


class DenseFormat(QuantizationMethod):
    """An unquantized checkpoint. A matrix that is stored [in, out] is turned without a copy."""

    name: ClassVar[str] = "none"

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        return not config

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Any configuration: whoever asks for this format by name says that the file is plain."""
        del config

    def kind(self, linear: LinearSpec) -> str:
        del linear
        return Dense.name

    def tensors(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        return spec.tensors()

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        stored = file[f"{linear.name}.weight"]
        if stored.dtype not in DTYPES:
            raise CheckpointError(
                f"{linear.name}.weight is stored as {stored.dtype}; a plain checkpoint holds "
                f"{', '.join(DTYPES)}. Serve the quantized model with its own --quantize method"
            )
        return Dense(stored.data.T, stored.dtype) if linear.transposed else stored


@hookimpl
def register_quantization() -> Sequence[type[QuantizationMethod]]:
    return [DenseFormat]
