"""Matrix products: several of a spec's linear layers, fused along their outputs into one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from infercore.backend import PackedLinear
from infercore.kinds import Dense, Kind
from infercore.layers.common import Layer, Source, to_tensor, torch_dtype
from infercore.layers.ops import Ops
from infercore.model_spec import LinearSpec


class DenseLinear:
    """Any kind as one dense matrix [N, K] in `dtype`, dequantized if it has to be."""

    def __init__(self, kind: Kind, device: torch.device, dtype: str) -> None:
        dense = kind if isinstance(kind, Dense) else Dense(kind.dequantize(), "float32")
        self.weight = to_tensor(dense, device, torch_dtype(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


class Linear(Layer):
    """y = x Wᵀ + b, W being the matrices of `specs` one above the other."""

    packed: PackedLinear
    bias: Tensor | None

    def __init__(self, ops: Ops, specs: Sequence[LinearSpec]) -> None:
        super().__init__()
        self.ops = ops
        self.specs = specs

    def load(self, source: Source) -> None:
        kinds = [source.weights.linear(spec.name) for spec in self.specs]
        self.packed = source.backend.pack(
            kinds[0] if len(kinds) == 1 else type(kinds[0]).concat_n(kinds)
        )
        biased = any(spec.bias for spec in self.specs)
        bias = torch.cat([self._bias(spec, source) for spec in self.specs]) if biased else None
        self.register_buffer("bias", bias)

    @staticmethod
    def _bias(spec: LinearSpec, source: Source) -> Tensor:
        if spec.bias:
            return source.tensor(f"{spec.name}.bias")
        return torch.zeros(spec.out_features, dtype=source.dtype, device=source.device)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.packed, self.bias)


class Head(Layer):
    """The output matrix. It multiplies in float32, so that logits are never rounded."""

    packed: PackedLinear

    def __init__(self, ops: Ops, spec: LinearSpec, tied_to: str | None, softcap: float | None):
        super().__init__()
        self.ops = ops
        self.spec = spec
        self.tied_to = tied_to
        self.softcap = softcap

    def load(self, source: Source) -> None:
        weights = source.weights
        kind = weights.tensor(self.tied_to) if self.tied_to else weights.linear(self.spec.name)
        self.packed = source.backend.pack_head(kind)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.logits(x, self.packed, self.softcap)


class Embedding(Layer):
    """Token embeddings, scaled, plus learned positions if the model has them.

    head: the head that this table is tied to; they share memory where their dtypes agree.
    """

    table: Tensor
    positions: Tensor | None

    def __init__(
        self, ops: Ops, name: str, scale: float, position_name: str | None, head: Head
    ) -> None:
        super().__init__()
        self.ops = ops
        self.name = name
        self.scale = scale
        self.position_name = position_name
        self._heads = (head,)  # in a tuple, so that it is not registered twice

    def load(self, source: Source) -> None:
        """After the head's."""
        packed = self._heads[0].packed if self._heads[0].tied_to else None
        self.shared = isinstance(packed, DenseLinear) and packed.weight.dtype == source.dtype
        if isinstance(packed, DenseLinear) and self.shared:
            self.table = packed.weight
        else:
            self.table = source.tensor(self.name)
        self.positions = source.tensor(self.position_name) if self.position_name else None

    @property
    def nbytes(self) -> int:
        positions = 0 if self.positions is None else self.positions.nbytes
        return positions if self.shared else positions + self.table.nbytes

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions [T] → [T, E]."""
        x = self.ops.embedding(ids, self.table)
        if self.scale != 1.0:
            # the scale itself is rounded to the dtype, as it was in training
            x = x * torch.tensor(self.scale, dtype=x.dtype, device=x.device)
        if self.positions is not None:
            x = x + self.ops.embedding(positions, self.positions)
        return x
