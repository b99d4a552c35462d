"""The one decoder that runs every model family: a ModelSpec over a backend's operations."""

from collections.abc import Sequence

from torch import Tensor, nn

from infercore.backend import Attention, Collective
from infercore.errors import UnsupportedModel
from infercore.executor import KVGroups, Progress
from infercore.layers.common import Layer, Norm, Source
from infercore.layers.linear import Embedding, Head, Linear
from infercore.layers.ops import Ops
from infercore.layers.rope import Rotary
from infercore.model_spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

Angles = tuple[Tensor, Tensor]


class Attend(Layer):
    """Rotates q and k, writes to the paged cache and attends. It has no parameters.

    group: index of the layer's KV group; member: its index in there.
    """

    cache: Attention

    def __init__(self, ops: Ops, spec: AttentionSpec, group: int, member: int) -> None:
        super().__init__()
        self.ops = ops
        self.spec = spec
        self.group = group
        self.member = member

    def forward(
        self, qk: Tensor, v: Tensor, angles: Angles | None, plans: Sequence[object]
    ) -> Tensor:
        """qk [T, H + H_kv, D], v [T, H_kv, D] → [T, H · D]."""
        if angles is not None:
            qk = self.ops.rope(qk, *angles)
        q, k = qk.split_with_sizes((self.spec.num_heads, self.spec.num_kv_heads), dim=1)
        return self.cache.forward(self.member, q, k, v, plans[self.group]).flatten(1)


class SelfAttention(nn.Module):
    """Grouped-query attention from the fused projection to the output's."""

    def __init__(self, ops: Ops, spec: AttentionSpec, group: int, member: int) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = Linear(ops, spec.qkv)
        self.qk_norm: Norm | None = None
        if spec.q_norm is not None and spec.k_norm is not None:
            heads = (spec.num_heads, spec.num_kv_heads)
            self.qk_norm = Norm(ops, spec.q_norm, spec.k_norm, heads=heads)
        self.attend = Attend(ops, spec, group, member)
        self.out = Linear(ops, (spec.out,))

    def forward(self, x: Tensor, angles: Angles | None, plans: Sequence[object]) -> Tensor:
        kv = self.spec.num_kv_heads
        heads = self.qkv(x).unflatten(-1, (-1, self.spec.head_dim))
        qk, v = heads.split((self.spec.num_heads + kv, kv), dim=1)
        if self.qk_norm is not None:
            qk, _ = self.qk_norm(qk)
        return self.out(self.attend(qk, v, angles, plans))  # type: ignore[no-any-return]


class Activation(Layer):
    """The nonlinearity between an MLP's two products."""

    def __init__(self, ops: Ops, spec: MlpSpec) -> None:
        super().__init__()
        if spec.activation not in ops.activations:
            raise UnsupportedModel(
                f"no operation computes the activation {spec.activation!r}; there are "
                f"{', '.join(ops.activations)}"
            )
        self.ops = ops
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.gated:
            return self.ops.act_and_mul(x, self.spec.activation)
        return self.ops.activation(x, self.spec.activation)


class DecoderLayer(nn.Module):
    """A transformer block; see LayerSpec for its formula."""

    def __init__(self, ops: Ops, spec: LayerSpec, group: int, member: int) -> None:
        super().__init__()
        self.pre_attention = Norm(ops, spec.pre_attention)
        self.attention = SelfAttention(ops, spec.attention, group, member)
        self.post_attention = _optional_norm(ops, spec.post_attention)
        self.pre_mlp = Norm(ops, spec.pre_mlp)
        self.mlp = nn.Sequential(
            Linear(ops, spec.mlp.inputs), Activation(ops, spec.mlp), Linear(ops, (spec.mlp.down,))
        )
        self.post_mlp = _optional_norm(ops, spec.post_mlp)

    def forward(
        self, x: Tensor, residual: Tensor | None, angles: Angles | None, plans: Sequence[object]
    ) -> tuple[Tensor, Tensor]:
        """x is what the residual lacks; the next norm adds it. All [T, E]."""
        x, residual = self.pre_attention(x, residual)
        x = self.attention(x, angles, plans)
        if self.post_attention is not None:
            x, _ = self.post_attention(x)
        x, summed = self.pre_mlp(x, residual)
        x = self.mlp(x)
        if self.post_mlp is not None:
            x, _ = self.post_mlp(x)
        return x, summed


def _optional_norm(ops: Ops, spec: NormSpec | None) -> Norm | None:
    return None if spec is None else Norm(ops, spec)


class Decoder(nn.Module):
    """Tokens to hidden states; `head` turns those that are sampled into logits.

    spec: the model, or one rank's share of it (`infercore.worker.parallel`).
    max_model_len: longest sequence, for the tables of angles.
    """

    def __init__(self, ops: Ops, spec: ModelSpec, groups: KVGroups, max_model_len: int) -> None:
        super().__init__()
        tied_to = spec.embedding if spec.tied else None
        self.head = Head(ops, spec.head, spec.vocab_size, tied_to, spec.logit_softcap)
        self.embedding = Embedding(
            ops, spec.embedding, spec.embedding_scale, spec.position_embedding, self.head
        )
        ropes: list[RopeSpec] = []
        for layer in spec.layers:
            if layer.attention.rope is not None and layer.attention.rope not in ropes:
                ropes.append(layer.attention.rope)
        self.rotaries = nn.ModuleList(Rotary(rope, max_model_len) for rope in ropes)
        self.rope_of = [
            None if layer.attention.rope is None else ropes.index(layer.attention.rope)
            for layer in spec.layers
        ]
        place = {
            layer: (number, member)
            for number, group in enumerate(groups)
            for member, layer in enumerate(group.layers)
        }
        self.layers = nn.ModuleList(
            DecoderLayer(ops, layer, *place[index]) for index, layer in enumerate(spec.layers)
        )
        self.final_norm = Norm(ops, spec.final_norm)

    def load(self, source: Source, progress: Progress) -> None:
        """Every leaf loads itself. Raises CheckpointError, UnsupportedModel."""
        leaves = self.leaves()
        for done, leaf in enumerate(leaves):
            progress("load", done, len(leaves))
            leaf.load(source)
        progress("load", len(leaves), len(leaves))

    def leaves(self) -> list[Layer]:
        return [module for module in self.modules() if isinstance(module, Layer)]

    def join(self, collective: Collective) -> None:
        """Let the layers of this share of a model talk to those of the other ranks."""
        for leaf in self.leaves():
            leaf.join(collective)

    def bind(self, caches: Sequence[Attention]) -> None:
        """Give each layer the cache of its group."""
        for leaf in self.leaves():
            if isinstance(leaf, Attend):
                leaf.cache = caches[leaf.group]

    def forward(self, ids: Tensor, positions: Tensor, plans: Sequence[object]) -> Tensor:
        """ids, positions [T]; plans: one per KV group. Returns [T, E]."""
        x = self.embedding(ids, positions)
        angles = [rotary(positions) for rotary in self.rotaries]
        residual = None
        for layer, rope in zip(self.layers, self.rope_of, strict=True):
            x, residual = layer(x, residual, None if rope is None else angles[rope], plans)
        x, _ = self.final_norm(x, residual)
        return x  # type: ignore[no-any-return]
