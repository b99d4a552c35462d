"""Tensor parallelism: which part of a model one rank holds (Megatron-LM, Shoeybi et al. 2019).

A rank computes some heads and some features of each MLP: q, k, v, gate and up are cut along their
outputs, out and down along their inputs, and the ranks' products are summed. The embedding and the
head are cut along the vocabulary, whose last share may be shorter. All ranks hold the norms and
learned positions, and a KV head is held by several ranks where there are fewer heads than ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from infercore.errors import UnsupportedModel
from infercore.executor import Weights
from infercore.kinds import Dense, Kind
from infercore.model_spec import (
    AttentionSpec,
    LayerSpec,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    vocabulary_share,
)


def require_ranks(spec: ModelSpec, ranks: int) -> None:
    """Raises UnsupportedModel, with the counts that work, if `ranks` cannot share the model."""
    reason = next(_obstacles(spec, ranks), None)
    if reason is None:
        return
    most = max(layer.attention.num_heads for layer in spec.layers)
    legal = [str(count) for count in range(1, most + 1) if not any(_obstacles(spec, count))]
    raise UnsupportedModel(
        f"{spec.architecture} cannot be split over {ranks} ranks, because {reason}; "
        f"use {' or '.join(legal)}"
    )


def _obstacles(spec: ModelSpec, ranks: int) -> Iterator[str]:
    if ranks < 1:
        yield "there must be at least one"
        return
    for layer in spec.layers:
        heads, kv_heads = layer.attention.num_heads, layer.attention.num_kv_heads
        if heads % ranks:
            yield f"it has {heads} attention heads, which they cannot share evenly"
        if kv_heads % ranks and ranks % kv_heads:
            yield f"it has {kv_heads} KV heads, neither a multiple nor a divisor of {ranks}"
        if layer.mlp.down.in_features % ranks:
            yield f"its MLPs have {layer.mlp.down.in_features} features, no multiple of {ranks}"
    if not vocabulary_share(spec.vocab_size, ranks - 1, ranks):
        yield f"its vocabulary of {spec.vocab_size} tokens leaves the last one nothing"


class Sharding:
    """One rank's share of a model.

    ranks: a count that `require_ranks` lets pass.
    spec: the model with this rank's sizes; its vocab_size alone stays the whole one's.
    """

    def __init__(self, spec: ModelSpec, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks
        # what the rank holds of a linear layer or a tensor, laid end to end
        self.outputs: dict[str, tuple[range, ...]] = {}
        self.inputs: dict[str, range] = {}
        tokens = vocabulary_share(spec.vocab_size, rank, ranks)
        self.outputs[spec.embedding] = (tokens,)
        self.spec = replace(
            spec,
            layers=tuple(self._layer(layer) for layer in spec.layers),
            head=self._column(spec.head, (tokens,)),
        )

    def weights(self, whole: Weights) -> "ShardedWeights":
        return ShardedWeights(whole, self)

    def _layer(self, layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention=self._attention(layer.attention), mlp=self._mlp(layer.mlp))

    def _attention(self, spec: AttentionSpec) -> AttentionSpec:
        q, kv = (self._share(n, spec.head_dim) for n in (spec.num_heads, spec.num_kv_heads))
        return replace(
            spec,
            num_heads=len(q) // spec.head_dim,
            num_kv_heads=len(kv) // spec.head_dim,
            qkv=self._columns(spec.qkv, (q, kv, kv)),
            out=self._row(spec.out, q),
        )

    def _mlp(self, spec: MlpSpec) -> MlpSpec:
        features = self._share(spec.down.in_features, 1)
        parts = sum(len(linear.parts) or 1 for linear in spec.inputs)
        return replace(
            spec,
            inputs=self._columns(spec.inputs, (features,) * parts),
            down=self._row(spec.down, features),
        )

    def _share(self, units: int, size: int) -> range:
        """The rank's features, of `units` times `size`; fewer units than ranks are repeated."""
        first = self.rank * units // self.ranks
        return range(first * size, (first + max(1, units // self.ranks)) * size)

    def _columns(
        self, linears: Sequence[LinearSpec], shares: Sequence[range]
    ) -> tuple[LinearSpec, ...]:
        """shares: one for each part of each of `linears`, in order."""
        left = list(shares)
        found = []
        for linear in linears:
            count = len(linear.parts) or 1
            found.append(self._column(linear, left[:count]))
            del left[:count]
        assert not left, f"{linears[0].name} and those beside it fuse fewer parts than there are"
        return tuple(found)

    def _column(self, linear: LinearSpec, shares: Sequence[range]) -> LinearSpec:
        starts = np.cumsum((0, *linear.parts)).tolist() if linear.parts else [0]
        pieces = tuple(
            range(start + share.start, start + share.stop)
            for start, share in zip(starts, shares, strict=False)
        )
        self.outputs[linear.name] = self.outputs[f"{linear.name}.bias"] = pieces
        sizes = tuple(len(piece) for piece in pieces)
        return replace(linear, out_features=sum(sizes), parts=sizes if linear.parts else ())

    def _row(self, linear: LinearSpec, share: range) -> LinearSpec:
        """The bias is added by the first rank alone, so that the sum has it once."""
        self.inputs[linear.name] = share
        return replace(linear, in_features=len(share), bias=linear.bias and self.rank == 0)


class ShardedWeights:
    """`Weights` of one rank: what it holds of each tensor, cut before anything is copied."""

    def __init__(self, whole: Weights, sharding: Sharding) -> None:
        self._whole = whole
        self._sharding = sharding

    def linear(self, name: str) -> Kind:
        kind = self._whole.linear(name)
        share = self._sharding.inputs.get(name)
        if share is not None:
            return kind.slice_k(share.start, share.stop)
        pieces = self._sharding.outputs.get(name)
        if pieces is None:
            return kind
        parts = [kind.slice_n(piece.start, piece.stop) for piece in pieces]
        return parts[0] if len(parts) == 1 else type(kind).concat_n(parts)

    def tensor(self, name: str) -> Dense:
        whole = self._whole.tensor(name)
        pieces = self._sharding.outputs.get(name)
        if pieces is None:
            return whole
        parts = [whole.data[piece.start : piece.stop] for piece in pieces]
        return replace(whole, data=parts[0] if len(parts) == 1 else np.concatenate(parts))
