"""What GPTQ and AWQ share: some matrices are packed, the others plain, and the file says which.

A packed matrix p is stored as p.qweight, p.qzeros and p.scales, a plain one as p.weight. The lists
of a configuration (`modules_in_block_to_quantize`, `modules_to_not_convert`, `lm_head`, the "-:"
rules of `dynamic`) told the tool what to pack; they are not asked again.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import Dense, IntGrouped, Kind
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import QuantizationMethod, TensorFile
from infercore_quantization.reading import expected, is_head, plain, tensor
from infercore_quantization.schemes import Scheme

Shape = tuple[int, ...]

AGAIN = (
    "quantize the original model with GPTQModel to its format 'gptq' (AWQ: 'gemm'), or serve the "
    "original with --quantize int4"
)

# format → why its files cannot be read
REFUSED: Mapping[str, str] = {
    "marlin": "its weights lie in the order in which the threads of one kernel read them",
    "marlin_24": "its weights are pruned 2:4 and lie in the order of one kernel's threads",
    "exl2": "its rows have several widths, are permuted and share scales of 4 bits",
    "exl3": "its weights are trellis-coded",
    "bitblas": "its weights lie in the order of one kernel's tiles",
    "gemv_fast": "its weights are interleaved for one kernel",
    "llm-awq": "its weights are interleaved for one kernel",
}

# a tensor's last name → the format that alone has it
FOREIGN: Mapping[str, str] = {"B": "marlin", "B_24": "marlin_24", "q_weight": "exl2"}


def require_served(stated: str, served: tuple[str, ...]) -> str:
    """The stated format. Raises UnsupportedModel, with the reason and what works, for others."""
    name = stated.lower()
    if name in served:
        return name
    reason = REFUSED.get(name, f"formats that are read are {', '.join(served)}")
    raise UnsupportedModel(f"a checkpoint in the format {stated!r} is not read: {reason}; {AGAIN}")


class PackedMethod(QuantizationMethod):
    """A format whose packed matrices become `int_grouped`."""

    _stored: Mapping[str, Shape]

    @abstractmethod
    def scheme(self, linear: LinearSpec) -> Scheme:
        """How the layer was quantized, if it is packed."""

    @abstractmethod
    def packed_shapes(self, linear: LinearSpec, scheme: Scheme) -> dict[str, Shape]:
        """{suffix after the layer's name: shape} of its packed tensors."""

    @abstractmethod
    def unpack(self, linear: LinearSpec, scheme: Scheme, file: TensorFile) -> IntGrouped:
        """The matrix of a packed layer. Raises CheckpointError."""

    def inspect(self, stored: Mapping[str, Shape]) -> None:
        """Raises UnsupportedModel for files of a kindred format, and if nothing is packed."""
        self._stored = stored
        for name in stored:
            foreign = FOREIGN.get(name.rpartition(".")[2])
            if foreign is not None:
                require_served(foreign, ())
        if not any(name.endswith(".qweight") for name in stored):
            raise UnsupportedModel(
                f"no matrix of the checkpoint is packed, as {self.name} packs them; leave "
                "--quantize out, or name a method that quantizes while loading"
            )

    def packed(self, linear: LinearSpec) -> bool:
        """Whether the file has it packed; a layer that is missing should be, unless it heads."""
        if f"{linear.name}.weight" in self._stored:
            return f"{linear.name}.qweight" in self._stored
        return f"{linear.name}.qweight" in self._stored or not is_head(linear)

    def kind(self, linear: LinearSpec) -> str:
        return IntGrouped.name if self.packed(linear) else Dense.name

    def tensors(self, spec: ModelSpec) -> dict[str, Shape]:
        head = f"{spec.head.name}.qweight"
        if spec.tied and head in self._stored:
            raise CheckpointError(
                f"{head} is an output matrix of its own, and config.json ties it to the "
                "embeddings; set tie_word_embeddings to false there"
            )
        shapes = spec.tensors()
        for linear in spec.linears():
            if self.packed(linear):
                shapes.pop(f"{linear.name}.weight")
                shapes |= expected(linear, self._packed_shapes(linear))
            bias = f"{linear.name}.bias"
            if bias in self._stored:  # older AutoGPTQ wrote one for every layer
                shapes[bias] = (linear.out_features,)
        return shapes

    def _packed_shapes(self, linear: LinearSpec) -> dict[str, Shape]:
        scheme = self.scheme(linear)
        shapes = self.packed_shapes(linear, scheme)
        name, wanted = f"{linear.name}.scales", shapes["scales"]
        stored = self._stored.get(name, wanted)
        if len(stored) == 2 and stored != wanted:
            size = "-1" if scheme.group_size is None else scheme.group_size
            raise CheckpointError(
                f"{name} has the shape {list(stored)}, and with group_size {size} it would be "
                f"{list(wanted)}; check that quantization_config belongs to these weights, or "
                "download the checkpoint again"
            )
        return shapes

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        bias = f"{linear.name}.bias"
        if bias in self._stored and not linear.bias and file[bias].dequantize().any():
            raise CheckpointError(
                f"{bias} is not zero, and the model's config.json knows of no bias there; "
                "check that config.json belongs to these weights"
            )
        if not self.packed(linear):
            return plain(linear, file)
        return self.unpack(linear, self.scheme(linear), file)


def words(file: TensorFile, name: str, shape: Shape, dtype: str = "int32") -> NDArray[Any]:
    """The packed tensor `name`. Raises CheckpointError unless it has that shape and dtype."""
    return tensor(file, name, (dtype,), shape).data


def checked_zeros(zeros: NDArray[np.int16], scheme: Scheme, name: str) -> NDArray[np.int16]:
    """The zero points. Raises CheckpointError if they are not those of a symmetric scheme."""
    middle = 2 ** (scheme.bits - 1)
    if scheme.symmetric and (zeros != middle).any():
        raise CheckpointError(
            f"{name} holds zero points from {zeros.min()} to {zeros.max()}, and a symmetric "
            f"{scheme.bits}-bit layer has {middle} alone; correct the format (gptq and gptq_v2 "
            "differ by 1) or the symmetry that quantization_config states, or download it again"
        )
    return zeros
