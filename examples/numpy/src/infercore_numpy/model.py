"""A decoder in NumPy: a ModelSpec's layers over a paged KV cache, all in float32.

Shapes: T tokens, E the hidden size, H heads, D the dimensions of a head.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from infercore.errors import UnsupportedModel
from infercore.executor import KVGroups, Weights
from infercore.model_spec import AttentionSpec, LinearSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from infercore.step import Bool, Float32, Int32, Step

ROPES = ("default", "linear")
ERF = np.vectorize(math.erf, otypes=[np.float32])
# Python's own numbers, unlike NumPy's, leave float32 arrays in float32.
ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x / 2 * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


class Model:
    """The weights of a spec, and what to do with them. Raises UnsupportedModel, CheckpointError."""

    def __init__(self, spec: ModelSpec, weights: Weights, groups: KVGroups) -> None:
        require_written(spec)
        self.spec = spec
        self.groups = groups
        self.place = {
            layer: (number, member)
            for number, group in enumerate(groups)
            for member, layer in enumerate(group.layers)
        }
        self.arrays: dict[str, Float32] = {}
        for linear in spec.linears():
            self.arrays[linear.name] = weights.linear(linear.name).dequantize()
        biases = [f"{linear.name}.bias" for linear in spec.linears() if linear.bias]
        norms = [name for norm in spec.norms() for name, _ in norm.tensors()]
        tables = filter(None, (spec.embedding, spec.position_embedding))
        for name in (*biases, *norms, *tables):
            self.arrays[name] = weights.tensor(name).dequantize()

    def allocate(self, num_blocks: Mapping[str, int]) -> None:
        """caches[group]: float32 [layer, K or V, block, position in it, H_kv, D]."""
        self.caches = []
        for group in self.groups:
            attention = self.spec.layers[group.layers[0]].attention
            blocks = (num_blocks[group.name], group.block_size)
            heads = (attention.num_kv_heads, attention.head_dim)
            self.caches.append(np.zeros((len(group.layers), 2, *blocks, *heads), np.float32))

    def forward(self, step: Step) -> Float32:
        """Write the step's keys and values, and return its hidden states [T, E]."""
        spec = self.spec
        x = self.arrays[spec.embedding][step.token_ids] * np.float32(spec.embedding_scale)
        if spec.position_embedding is not None:
            x = x + self.arrays[spec.position_embedding][step.positions]
        for index, layer in enumerate(spec.layers):
            y = self.norm(x, layer.pre_attention)
            y = self.attention(y, layer.attention, step, *self.place[index])
            x = x + (y if layer.post_attention is None else self.norm(y, layer.post_attention))
            y = self.mlp(self.norm(x, layer.pre_mlp), layer.mlp)
            x = x + (y if layer.post_mlp is None else self.norm(y, layer.post_mlp))
        return self.norm(x, spec.final_norm)

    def logits(self, hidden: Float32) -> Float32:
        """hidden [..., E] → [..., V]."""
        name = self.spec.embedding if self.spec.tied else self.spec.head.name
        return capped(hidden @ self.arrays[name].T, self.spec.logit_softcap)

    def linear(self, x: Float32, spec: LinearSpec) -> Float32:
        y: Float32 = x @ self.arrays[spec.name].T
        return y + self.arrays[f"{spec.name}.bias"] if spec.bias else y

    def norm(self, x: Float32, spec: NormSpec) -> Float32:
        """Over the last dimension."""
        if spec.centered:
            x = x - x.mean(-1, keepdims=True)
        root: Any = np.sqrt(np.square(x).mean(-1, keepdims=True) + spec.eps)
        y: Float32 = x / root * (self.arrays[f"{spec.name}.weight"] + np.float32(spec.offset))
        return y + self.arrays[f"{spec.name}.bias"] if spec.bias else y

    def mlp(self, x: Float32, spec: MlpSpec) -> Float32:
        y = np.concatenate([self.linear(x, linear) for linear in spec.inputs], axis=-1)
        gate, up = np.split(y, 2, axis=-1) if spec.gated else (y, None)
        y = ACTIVATIONS[spec.activation](gate)
        return self.linear(y if up is None else y * up, spec.down)

    def attention(
        self, x: Float32, spec: AttentionSpec, step: Step, group: int, member: int
    ) -> Float32:
        dim, heads, kv_heads = spec.head_dim, spec.num_heads, spec.num_kv_heads
        fused = np.concatenate([self.linear(x, linear) for linear in spec.qkv], axis=-1)
        q, k, v = np.split(fused.reshape(len(x), -1, dim), [heads, heads + kv_heads], axis=1)
        if spec.q_norm is not None and spec.k_norm is not None:
            q, k = self.norm(q, spec.q_norm), self.norm(k, spec.k_norm)
        if spec.rope is not None:
            q, k = rotated(q, spec.rope, step.positions), rotated(k, spec.rope, step.positions)
        cache = self.caches[group][member].reshape(2, -1, kv_heads, dim)
        cache[0, step.slot_mapping[group]], cache[1, step.slot_mapping[group]] = k, v
        y = np.zeros_like(q)
        size = self.groups[group].block_size
        for row, (start, stop) in enumerate(pairwise(step.query_start.tolist())):
            seen = np.arange(step.context_len[row])
            slots = step.block_table[group, row][seen // size] * size + seen % size
            y[start:stop] = attend(q[start:stop], cache[0, slots], cache[1, slots], spec)
        return self.linear(y.reshape(len(x), -1), spec.out)


def attend(q: Float32, k: Float32, v: Float32, spec: AttentionSpec) -> Float32:
    """The last positions' queries q [M, H, D] over k, v [S, H_kv, D]. Returns [M, H, D]."""
    shape = (len(q), spec.num_kv_heads, -1, spec.head_dim)
    scores = np.einsum("mkgd,skd->kgms", q.reshape(shape), k) * np.float32(spec.scale)
    scores = capped(scores, spec.softcap)
    distance = np.arange(len(k) - len(q), len(k))[:, None] - np.arange(len(k))
    hidden: Bool = (distance < 0) | (distance >= (spec.window or len(k) + 1))
    scores = np.where(hidden, np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    # what is masked may be another sequence's NaN, and 0 · NaN is NaN
    unread: Bool = np.logical_and.reduce(hidden, axis=0)
    v = np.where(unread[:, None, None], np.float32(0), v)
    attended: Float32 = np.einsum("kgms,skd->mkgd", weights, v)
    return attended.reshape(q.shape)


def rotated(x: Float32, spec: RopeSpec, positions: Int32) -> Float32:
    """x [T, H, D], its halves as pairs (Su et al. 2021, in GPT-NeoX's order)."""
    inverse = spec.theta ** (-np.arange(0, spec.dim, 2, dtype=np.float32) / spec.dim)
    inverse = inverse / np.float32(spec.scaling.get("factor", 1.0))
    angles = (positions[:, None] * inverse.astype(np.float32))[:, None]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def require_written(spec: ModelSpec) -> None:
    """Raises UnsupportedModel for what is not written here."""
    ropes = [layer.attention.rope for layer in spec.layers if layer.attention.rope is not None]
    kinds = {rope.scaling.get("rope_type", "default") for rope in ropes}
    activations = {layer.mlp.activation for layer in spec.layers}
    for what, wanted, written in (
        ("rope_type", kinds, ROPES),
        ("activation", activations, tuple(ACTIVATIONS)),
    ):
        if wanted - set(written):
            raise UnsupportedModel(
                f"{what} {', '.join(wanted - set(written))} is not written in this example; it has "
                f"{', '.join(written)}"
            )


def capped(scores: Float32, softcap: float | None) -> Float32:
    if softcap is None:
        return scores
    squashed: Any = np.tanh(scores / softcap)
    return squashed * softcap  # type: ignore[no-any-return]
