"""Matrix products: several of a spec's linear layers, fused along their outputs into one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from infercore.backend import Collective, PackedLinear
from infercore.errors import UnsupportedModel
from infercore.kinds import Dense, Kind
from infercore.layers.common import Layer, Source, to_tensor, torch_dtype
from infercore.layers.ops import Ops
from infercore.model_spec import LinearSpec, Shard, vocabulary_share


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


def joined(kinds: Sequence[Kind]) -> Kind:
    """The matrices one above the other; dequantized if no one kind holds them all.

    Their input is then rounded only if all parts wanted it rounded in the same way.
    """
    if len(kinds) == 1:
        return kinds[0]
    try:
        return type(kinds[0]).concat_n(kinds)
    except UnsupportedModel:
        activations = {kind.activation for kind in kinds}
        activation = activations.pop() if len(activations) == 1 else None
        return Dense.concat_n([Dense(kind.dequantize(), "float32", activation) for kind in kinds])


class Linear(Layer):
    """y = x Wᵀ + b, W being the matrices of `specs` one above the other.

    reduce: sums y over the ranks, where each multiplies a share of x; None = y is whole.
    """

    packed: PackedLinear
    bias: Tensor | None
    reduce: Callable[[Tensor], Tensor] | None = None

    def __init__(self, ops: Ops, specs: Sequence[LinearSpec]) -> None:
        super().__init__()
        self.ops = ops
        self.specs = specs

    def load(self, source: Source) -> None:
        kinds = [source.weights.linear(spec.name) for spec in self.specs]
        self.packed = source.backend.pack(joined(kinds))
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

    def join(self, collective: Collective) -> None:
        if self.specs[0].shard is Shard.ROW:
            self.reduce = collective.all_reduce

    def forward(self, x: Tensor) -> Tensor:
        y = self.ops.linear(x, self.packed, self.bias)
        return y if self.reduce is None else self.reduce(y)


class Head(Layer):
    """The output matrix. It multiplies in float32, so that logits are never rounded.

    vocab_size: of the whole model; `spec` may be a rank's share, and all ranks get all logits.
    """

    packed: PackedLinear
    collective: Collective | None = None

    def __init__(
        self,
        ops: Ops,
        spec: LinearSpec,
        vocab_size: int,
        tied_to: str | None,
        softcap: float | None,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.spec = spec
        self.vocab_size = vocab_size
        self.tied_to = tied_to
        self.softcap = softcap

    def load(self, source: Source) -> None:
        weights = source.weights
        kind = weights.tensor(self.tied_to) if self.tied_to else weights.linear(self.spec.name)
        self.packed = source.backend.pack_head(kind)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def join(self, collective: Collective) -> None:
        self.collective = collective

    def forward(self, x: Tensor) -> Tensor:
        """x [S, E] → float32 [S, V]."""
        logits = self.ops.logits(x, self.packed, self.softcap)
        return logits if self.collective is None else self._gathered(logits, self.collective)

    def _gathered(self, logits: Tensor, collective: Collective) -> Tensor:
        """All shares, made equally wide, which a gather needs; the padding stands at the end."""
        width = len(vocabulary_share(self.vocab_size, 0, collective.size))
        padded = F.pad(logits, (0, width - logits.shape[-1]))
        return collective.all_gather(padded, -1)[:, : self.vocab_size]


class Embedding(Layer):
    """Token embeddings, scaled, plus learned positions if the model has them.

    head: the head that this table is tied to; they share memory where their dtypes agree.
    """

    table: Tensor
    positions: Tensor | None
    collective: Collective | None = None

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

    def join(self, collective: Collective) -> None:
        self.collective = collective

    @property
    def nbytes(self) -> int:
        positions = 0 if self.positions is None else self.positions.nbytes
        return positions if self.shared else positions + self.table.nbytes

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions [T] → [T, E]."""
        if self.collective is None:
            x = self.ops.embedding(ids, self.table)
        else:
            x = self._summed(ids, self.collective)
        if self.scale != 1.0:
            # the scale itself is rounded to the dtype, as it was in training
            x = x * torch.tensor(self.scale, dtype=x.dtype, device=x.device)
        if self.positions is not None:
            x = x + self.ops.embedding(positions, self.positions)
        return x

    def _summed(self, ids: Tensor, collective: Collective) -> Tensor:
        """Each token's row from the one rank that has it, and zeros from the others."""
        local = (
            ids
            - vocabulary_share(self._heads[0].vocab_size, collective.rank, collective.size).start
        )
        elsewhere = (local < 0) | (local >= len(self.table))
        x = self.ops.embedding(local.masked_fill(elsewhere, 0), self.table)
        return collective.all_reduce(x.masked_fill(elsewhere[:, None], 0))
