"""A decoder in NumPy: what a ModelSpec means, in float64, without a cache, one sequence at a time.

It is the oracle that travels: checks that hold two computations of a backend against each other
cannot see an error that both make, such as a scale or a position that is wrong everywhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infercore.executor import Weights
from infercore.model_spec import AttentionSpec, LinearSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from infercore.step import Float32

Array: TypeAlias = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


class Reference:
    """The model of a spec and its weights."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec = spec
        self._weights = weights
        self._read: dict[str, Array] = {}

    def logprobs(self, ids: Sequence[int]) -> Float32:
        """Log-probabilities float32 [T, V] of the token that follows each of `ids`."""
        logits = self.logits(ids)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        logprobs: Float32 = (shifted - total).astype(np.float32)
        return logprobs

    def logits(self, ids: Sequence[int]) -> Array:
        """Logits [T, V] behind each of `ids`."""
        spec = self.spec
        positions = np.arange(len(ids))
        x = self._tensor(spec.embedding)[list(ids)] * spec.embedding_scale
        if spec.position_embedding is not None:
            x = x + self._tensor(spec.position_embedding)[positions]
        for layer in spec.layers:
            branch = self._attention(layer.attention, self._norm(layer.pre_attention, x), positions)
            x = x + self._norm(layer.post_attention, branch)
            branch = self._mlp(layer.mlp, self._norm(layer.pre_mlp, x))
            x = x + self._norm(layer.post_mlp, branch)
        x = self._norm(spec.final_norm, x)
        head = self._tensor(spec.embedding).T if spec.tied else None
        return _capped(self._linear(spec.head, x) if head is None else x @ head, spec.logit_softcap)

    def _attention(self, spec: AttentionSpec, x: Array, positions: NDArray[np.int64]) -> Array:
        sizes = np.cumsum([spec.num_heads, spec.num_kv_heads]) * spec.head_dim
        fused = np.concatenate([self._linear(linear, x) for linear in spec.qkv], axis=-1)
        q, k, v = (part.reshape(len(x), -1, spec.head_dim) for part in np.split(fused, sizes, -1))
        q, k = self._norm(spec.q_norm, q), self._norm(spec.k_norm, k)
        if spec.rope is not None:
            q, k = _rotated(spec.rope, q, positions), _rotated(spec.rope, k, positions)
        shared = spec.num_heads // spec.num_kv_heads  # heads that read the same keys stand together
        k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
        scores = _capped(np.einsum("qhd,khd->hqk", q, k) * spec.scale, spec.softcap)
        distance = positions[:, None] - positions
        read = (distance >= 0) & (distance < (spec.window or len(x)))
        weights = np.exp(np.where(read, scores - scores.max(axis=-1, keepdims=True), -np.inf))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return self._linear(spec.out, out)

    def _mlp(self, spec: MlpSpec, x: Array) -> Array:
        inner = np.concatenate([self._linear(linear, x) for linear in spec.inputs], axis=-1)
        activation = ACTIVATIONS[spec.activation]
        if spec.gated:
            gate, up = np.split(inner, 2, axis=-1)
            return self._linear(spec.down, activation(gate) * up)
        return self._linear(spec.down, activation(inner))

    def _norm(self, spec: NormSpec | None, x: Array) -> Array:
        """x where the model has no such norm."""
        if spec is None:
            return x
        if spec.centered:
            x = x - x.mean(axis=-1, keepdims=True)
        normal = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + spec.eps)
        scaled: Array = normal * (self._tensor(f"{spec.name}.weight") + spec.offset)
        return scaled + self._tensor(f"{spec.name}.bias") if spec.bias else scaled

    def _linear(self, spec: LinearSpec, x: Array) -> Array:
        if spec.name not in self._read:
            kind = self._weights.linear(spec.name)
            self._read[spec.name] = kind.dequantize().astype(np.float64)
        y: Array = x @ self._read[spec.name].T
        return y + self._tensor(f"{spec.name}.bias") if spec.bias else y

    def _tensor(self, name: str) -> Array:
        if name not in self._read:
            self._read[name] = self._weights.tensor(name).dequantize().astype(np.float64)
        return self._read[name]


def _capped(x: Array, cap: float | None) -> Array:
    capped: Array = x if cap is None else cap * np.tanh(x / cap)
    return capped


def _rotated(rope: RopeSpec, x: Array, positions: NDArray[np.int64]) -> Array:
    """x [T, H, D], its first half paired with its second (Su et al. 2021)."""
    kind = rope.scaling.get("rope_type", "default")
    assert kind in ("default", "linear"), f"the reference has no rope_type {kind}"
    stretch = rope.scaling["factor"] if kind == "linear" else 1.0
    inverse = rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim) / stretch
    angles = positions[:, None, None] * inverse
    cos, sin = np.cos(angles), np.sin(angles)
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
