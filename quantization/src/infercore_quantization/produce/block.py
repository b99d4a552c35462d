"""One layer of a model, run alone over all windows of the calibration text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from infercore.executor import Weights
from infercore.kv_groups import kv_groups
from infercore.layers.common import Layer, Source
from infercore.layers.decoder import Attend, DecoderLayer
from infercore.layers.rope import Rotary
from infercore.model_spec import LayerSpec, LinearSpec, ModelSpec
from infercore_quantization.produce.overlay import Overlay
from infercore_quantization.produce.plain_torch import PlainTorch
from infercore_quantization.produce.windows import Int64, blocks_of, one_sequence

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """Linear layers that read the same input."""

    name: str
    specs: tuple[LinearSpec, ...]

    @property
    def in_features(self) -> int:
        return self.specs[0].in_features


def stages_of(layer: LayerSpec) -> tuple[Stage, ...]:
    """In the order of computation: what reads the first norm, attention, the second norm, MLP."""
    return (
        Stage("qkv", layer.attention.qkv),
        Stage("out", (layer.attention.out,)),
        Stage("inputs", layer.mlp.inputs),
        Stage("down", (layer.mlp.down,)),
    )


@dataclass(slots=True)
class Moments:
    """Of a stage's input x over all tokens: second = E[x xᵀ] [K, K], magnitude = E|x| [K]."""

    second: Tensor
    magnitude: Tensor
    count: int = 0

    @classmethod
    def empty(cls, size: int) -> "Moments":
        return cls(torch.zeros(size, size), torch.zeros(size))

    def add(self, x: Tensor) -> None:
        """x float32 [T, K]."""
        total = self.count + len(x)
        self.second.mul_(self.count / total).addmm_(x.T, x, alpha=1 / total)
        self.magnitude.mul_(self.count / total).add_(x.abs().sum(0) / total)
        self.count = total


class Block:
    """Layer `index` of a model in float32 on core's default operations.

    weights: the layer's, in which matrices may be replaced. tick: told after every window.
    """

    def __init__(
        self, spec: ModelSpec, index: int, weights: Weights, length: int, tick: Tick
    ) -> None:
        self.spec = spec.layers[index]
        self.stages = stages_of(self.spec)
        self.weights = Overlay(weights)
        self._tick = tick
        backend = PlainTorch(length)
        device = backend.device(0)
        group = kv_groups(replace(spec, layers=(self.spec,)), backend.config.block_size, 4)[0]
        self._layer = DecoderLayer(backend.ops(), self.spec, 0, 0)
        self._source = Source(self.weights, backend, device, torch.float32)
        self.reload()
        cache = backend.attention(group, [self.spec.attention])
        cache.allocate(blocks_of(group, length))
        for module in self._layer.modules():
            if isinstance(module, Attend):
                module.cache = cache
        self._plans = [cache.plan(one_sequence(group, length, device))]
        self._angles = None
        if self.spec.attention.rope is not None:
            rotary = Rotary(self.spec.attention.rope, length)
            rotary.load(self._source)
            self._angles = rotary(torch.arange(length))

    def reload(self) -> None:
        """Take the weights again, after some were replaced."""
        for module in self._layer.modules():
            if isinstance(module, Layer):
                module.load(self._source)

    def moments(self, stages: Sequence[Stage], hidden: Tensor) -> list[Moments]:
        """Of the inputs of those stages, over hidden [R, T, E]: what comes into the layer."""
        made = [Moments.empty(stage.in_features) for stage in stages]
        modules = [self._modules()[stage.name] for stage in stages]

        def watch(into: Moments) -> Callable[[Any, Any], None]:
            return lambda _, inputs: into.add(inputs[0])

        hooks = [
            module.register_forward_pre_hook(watch(into))
            for module, into in zip(modules, made, strict=True)
        ]
        for window in hidden:
            self._run(window)
        for hook in hooks:
            hook.remove()
        return made

    def forward(self, hidden: Tensor) -> None:
        """Replace hidden [R, T, E], what comes into the layer, by what comes out of it."""
        for window in hidden:
            window.copy_(self._run(window))

    def _run(self, window: Tensor) -> Tensor:
        # a copy, since some operations work in place
        x, residual = self._layer(window.clone(), None, self._angles, self._plans)
        self._tick()
        out: Tensor = x + residual
        return out

    def _modules(self) -> dict[str, nn.Module]:
        attention, mlp = self._layer.attention, self._layer.mlp
        return {"qkv": attention.qkv, "out": attention.out, "inputs": mlp[0], "down": mlp[2]}


def embed(spec: ModelSpec, weights: Weights, windows: Int64, into: Tensor) -> None:
    """What comes into the first layer: ids int64[R, T] → float32 [R, T, E].

    Rows are read as they are needed, so that the table is never held.
    """
    table = weights.tensor(spec.embedding)
    for ids, out in zip(windows, into, strict=True):
        rows = replace(table, data=table.data[ids]).dequantize()
        out.copy_(torch.from_numpy(rows)).mul_(spec.embedding_scale)
        if spec.position_embedding is not None:
            positions = weights.tensor(spec.position_embedding)
            first = replace(positions, data=positions.data[: len(ids)])
            out.add_(torch.from_numpy(first.dequantize()))
