"""ModelSpec: a decoder described by numbers and names, without torch.

Built from `config.json` by a model family (`infercore/models/`). It says what to compute, layer by
layer, and where the checkpoint keeps each tensor; the loader checks a checkpoint against it before
it reads a byte, the memory arithmetic adds it up, and every executor, torch or not, builds from it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Shard(Enum):
    """How tensor parallelism splits a matrix."""

    COLUMN = "column"  # along the output features; no communication
    ROW = "row"  # along the input features; outputs are summed
    REPLICATED = "replicated"


def vocabulary_share(vocab_size: int, rank: int, ranks: int) -> range:
    """The token ids whose embeddings and logits a rank computes.

    All ranks have equally many, but for those at the end where the vocabulary does not divide.
    """
    width = -(-vocab_size // ranks)
    return range(rank * width, min((rank + 1) * width, vocab_size))


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """y = x Wᵀ + b. `name` is the module's path: the checkpoint holds `name.weight`.

    parts: sizes of the outputs that one stored matrix fuses (q, k, v), () if it fuses none.
    transposed: stored [in, out], as GPT-2's Conv1D does.
    """

    name: str
    in_features: int
    out_features: int
    shard: Shard
    bias: bool = False
    parts: tuple[int, ...] = ()
    transposed: bool = False

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        out_in = (self.out_features, self.in_features)
        yield f"{self.name}.weight", out_in[::-1] if self.transposed else out_in
        if self.bias:
            yield f"{self.name}.bias", (self.out_features,)


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMSNorm, or LayerNorm if `centered`. `offset` is added to the weight (Gemma: 1)."""

    name: str
    size: int
    eps: float
    centered: bool = False
    bias: bool = False
    offset: float = 0.0

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{self.name}.weight", (self.size,)
        if self.bias:
            yield f"{self.name}.bias", (self.size,)


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding, half-rotated (Su et al. 2021, in GPT-NeoX's order).

    theta: base. dim: rotated dimensions of a head.
    scaling: the checkpoint's `rope_scaling`, with `rope_type` "linear", "llama3", "yarn" or
        "default"; see `infercore.layers.rope` for each one's formula and source.
    """

    theta: float
    dim: int
    scaling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention over a paged cache.

    qkv: one fused matrix, or three. scale: multiplies q·k.
    window: positions read, the current one included; None = all.
    softcap: s → softcap · tanh(s / softcap) on scores, before the mask; None = off.
    q_norm, k_norm: per head, before rope (Qwen3).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qkv: tuple[LinearSpec, ...]
    out: LinearSpec
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """act(x Gᵀ) · (x Uᵀ) if gated (inputs = gate, up), else act(x Uᵀ); then down.

    activation: "silu", "gelu" (erf), "gelu_tanh" or "relu".
    """

    inputs: tuple[LinearSpec, ...]
    down: LinearSpec
    activation: str
    gated: bool


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A transformer block. Norms stand before each branch, and after it where named (Gemma 2).

    x += post_attention(attention(pre_attention(x))); x += post_mlp(mlp(pre_mlp(x)))
    """

    pre_attention: NormSpec
    attention: AttentionSpec
    pre_mlp: NormSpec
    mlp: MlpSpec
    post_attention: NormSpec | None = None
    post_mlp: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only language model.

    embedding, position_embedding: tensor names; the latter only for learned positions.
    embedding_scale: multiplies embeddings (Gemma: sqrt(hidden_size)), rounded to the dtype.
    head: the output matrix; `tied` makes it the embedding's.
    logit_softcap: as in AttentionSpec, on the logits.
    max_position: longest sequence that the model was made for.
    dtype: the checkpoint's own.
    quantization: the checkpoint's `quantization_config`, empty if it has none.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position: int
    dtype: str
    embedding: str
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    head: LinearSpec
    tied: bool
    embedding_scale: float = 1.0
    position_embedding: str | None = None
    logit_softcap: float | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)

    def linears(self) -> Iterator[LinearSpec]:
        """Every matrix product, in the order of computation; the head last, unless tied."""
        for layer in self.layers:
            yield from (*layer.attention.qkv, layer.attention.out)
            yield from (*layer.mlp.inputs, layer.mlp.down)
        if not self.tied:
            yield self.head

    def norms(self) -> Iterator[NormSpec]:
        for layer in self.layers:
            attention = layer.attention
            optional = (layer.post_attention, layer.post_mlp, attention.q_norm, attention.k_norm)
            yield from (layer.pre_attention, layer.pre_mlp)
            yield from (norm for norm in optional if norm is not None)
        yield self.final_norm

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of all that an unquantized checkpoint must hold."""
        shapes: dict[str, tuple[int, ...]] = {self.embedding: (self.vocab_size, self.hidden_size)}
        if self.position_embedding is not None:
            shapes[self.position_embedding] = (self.max_position, self.hidden_size)
        parts: tuple[LinearSpec | NormSpec, ...] = (*self.linears(), *self.norms())
        for part in parts:
            shapes.update(part.tensors())
        return shapes

    @property
    def num_parameters(self) -> int:
        total = 0
        for shape in self.tensors().values():
            size = 1
            for dim in shape:
                size *= dim
            total += size
        return total

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of K and V over all layers, for one token."""
        return sum(
            2 * layer.attention.num_kv_heads * layer.attention.head_dim * itemsize
            for layer in self.layers
        )


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Architectures that one function turns into a ModelSpec.

    build: config.json as a mapping → ModelSpec. Raises UnsupportedModel, with the key at fault,
        for a setting that it would otherwise ignore.
    """

    name: str
    architectures: tuple[str, ...]
    build: Callable[[Mapping[str, Any]], ModelSpec]
