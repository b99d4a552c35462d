"""Lowers a decoder to one native call per step.

The model is traced to core's layers (`torch.fx`), and each layer with a native form becomes
instructions of native/step.h: the kernels that run it un-lowered, so its bits stay. Views between
layers become offsets. Whatever else the graph does, torch does in its place, over the same memory,
so that any model is right, and fast where its layers are known.
"""

import ctypes
import inspect
import logging
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from infercore.backend import AttentionBatch
from infercore.layers.common import Layer, Norm
from infercore.layers.decoder import Activation, Attend
from infercore.layers.linear import Embedding, Linear
from infercore.layers.rope import Rotary
from infercore_cpu.lowered import LoweredDecoder, NativePart, Part, ToArena, TorchPart, each
from infercore_cpu.lowering import Angles, Lowering
from infercore_cpu.program import OUTPUT, Value

logger = logging.getLogger(__name__)

TOKENS = 3  # of the example by which the graph's shapes are learnt
# what only looks at memory in another way
VIEWS = ("unflatten", "flatten", "split", "split_with_sizes", "chunk", "view", "narrow")
UNTRACEABLE = (TraceError, TypeError, RuntimeError)  # what Python's own flow raises


def lower(model: nn.Module, lib: ctypes.CDLL, dtype: torch.dtype) -> nn.Module:
    """The decoder as a program, or as it is where it cannot be traced or has another dtype.

    model: takes ids and positions [T] and a plan per KV group, whose caches are allocated. What
    it wrote into block 0 means nothing to anyone.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return model
    try:
        graph = fx.GraphModule(model, LayerTracer().trace(model))
    except UNTRACEABLE as error:
        logger.warning("The model runs layer by layer, since it cannot be traced: %s", error)
        return model
    if any(_writes_in_place(node) for node in graph.graph.nodes):
        return model
    with torch.inference_mode():
        return Compiler(graph, lib, dtype, _examples(model, graph)).compile(model)


class LayerTracer(fx.Tracer):
    """Stops at core's layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) or super().is_leaf_module(m, module_qualified_name)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node gave."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.given: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.given[n] = super().run_node(n)
        return self.given[n]


def _writes_in_place(node: fx.Node) -> bool:
    return node.op == "call_method" and str(node.target).endswith("_")


def _examples(model: nn.Module, graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """What every node gives for a few tokens of padding, which touch nothing but block 0."""
    caches = {leaf.group: leaf.cache for leaf in model.modules() if isinstance(leaf, Attend)}
    rows = np.array([0, TOKENS], np.int32), np.array([TOKENS], np.int32)
    nothing = torch.zeros(TOKENS, dtype=torch.int64)
    batch = AttentionBatch(
        query_start=torch.from_numpy(rows[0]),
        context_len=torch.from_numpy(rows[1]),
        block_table=torch.zeros(1, 1, dtype=torch.int32),
        slot_mapping=nothing,
        host_query_start=rows[0],
        host_context_len=rows[1],
        fresh_blocks=nothing[:0],
    )
    recorder = Recorder(graph)
    recorder.run(nothing, nothing, [caches[group].plan(batch) for group in sorted(caches)])
    return recorder.given


class Compiler:
    """Walks a graph's nodes in order; each becomes instructions, or a view, or torch's."""

    def __init__(
        self,
        graph: fx.GraphModule,
        lib: ctypes.CDLL,
        dtype: torch.dtype,
        examples: dict[fx.Node, Any],
    ) -> None:
        self.graph = graph
        self.lib = lib
        self.examples = examples
        self.lowering = Lowering(lib, dtype)
        self.parts: list[Part] = []
        self.angles: dict[fx.Node, Angles] = {}
        self.by_torch: set[fx.Node] = set()
        self.joined: set[fx.Node] = set()  # done with the node before them
        nodes = list(graph.graph.nodes)
        self.ids, self.positions, self.plans = (n for n in nodes if n.op == "placeholder")

    def compile(self, model: nn.Module) -> LoweredDecoder:
        *nodes, output = self.graph.graph.nodes
        for node in nodes:
            if node.op != "placeholder" and not self._native(node):
                self._torch(node)
        (result,) = output.args
        value = None if result in self.by_torch else self.lowering.known(self.examples[result])
        if value is not None:
            self.lowering.assembly.leave()
            self.lowering.assembly.use(value)
            if value.whole:
                value.buffer.place = OUTPUT
        self._flush()
        return LoweredDecoder(model, self.graph, self.lib, self.lowering, self.parts, result, value)

    def _native(self, node: fx.Node) -> bool:
        if node in self.joined:
            return True
        if node.op == "call_module":
            return self._layer(node, self.graph.get_submodule(str(node.target)))
        return _is_view(node) and all(self.lowering.known(x) for x in _tensors(self.examples[node]))

    def _layer(self, node: fx.Node, layer: nn.Module) -> bool:
        given = inspect.signature(layer.forward).bind(*node.args, **node.kwargs).arguments
        example = self.examples[node]
        if isinstance(layer, Rotary):
            return self._rotary(node, layer, given)
        if isinstance(layer, Embedding):
            own = given["ids"] is self.ids and given["positions"] is self.positions
            return own and self.lowering.embedding(layer, example)
        if isinstance(layer, Norm):
            x, residual = self._operand(given["x"]), given.get("residual")
            if x is None:
                return False
            other = None if residual is None else self._operand(residual)
            known = residual is None or other is not None
            return known and self.lowering.norm(layer, x, other, example)
        if isinstance(layer, Attend):
            return self._attend(layer, given, example)
        if isinstance(layer, Linear | Activation):
            x = self._operand(given["x"])
            if x is None:
                return False
            if isinstance(layer, Activation):
                return self.lowering.activation(layer, x, example)
            return self._linear(node, layer, x)
        return False

    def _rotary(self, node: fx.Node, layer: Rotary, given: dict[str, Any]) -> bool:
        if type(layer) is not Rotary or given["positions"] is not self.positions:
            return False
        self.angles[node] = Angles(layer)
        return True

    def _linear(self, node: fx.Node, layer: Linear, x: Value) -> bool:
        example, users = self.examples[node], list(node.users)
        if len(users) == 1 and users[0].op == "call_module":
            next_layer = self.graph.get_submodule(str(users[0].target))
            if isinstance(next_layer, Activation) and self.lowering.joins(next_layer, example):
                after = (next_layer, self.examples[users[0]])
                if not self.lowering.linear(layer, x, example, after):
                    return False
                self.joined.add(users[0])
                return True
        return self.lowering.linear(layer, x, example)

    def _attend(self, layer: Attend, given: dict[str, Any], example: Tensor) -> bool:
        angles = given.get("angles")
        if given["plans"] is not self.plans or not (angles is None or angles in self.angles):
            return False
        qk, v = self._operand(given["qk"]), self._operand(given["v"])
        if qk is None or v is None:
            return False
        rotated = None if angles is None else self.angles[angles]
        return self.lowering.attend(layer, qk, v, rotated, example)

    def _operand(self, node: object) -> Value | None:
        """A tensor that a native form reads; what torch made is copied to the arena first."""
        if not isinstance(node, fx.Node) or node in (self.ids, self.positions):
            return None
        example = self.examples[node]
        value = self.lowering.known(example)
        if value is not None or node not in self.by_torch or not self._can_copy(example):
            return value
        self._flush()
        self.lowering.assembly.leave()
        self.parts.append(ToArena(node, self.lowering.assembly.use(self.lowering.define(example))))
        return self.lowering.known(example)

    def _can_copy(self, example: object) -> bool:
        return (
            isinstance(example, Tensor)
            and example.dim() >= 2
            and len(example) == TOKENS
            and example.dtype == self.lowering.dtype
            and example.is_contiguous()
            and not self.lowering.holds(example)
        )

    def _torch(self, node: fx.Node) -> None:
        """Over views of the values that it reads, and the results of other such nodes."""
        for other in node.all_input_nodes:
            if other in self.angles and other not in self.by_torch:
                self._torch(other)
        self._flush()
        self.lowering.assembly.leave()
        for other in (*node.all_input_nodes, node):
            for example in _tensors(self.examples[other]):
                self.lowering.touch(example)
        values = {
            other: each(self.examples[other], self._value_or_self)
            for other in node.all_input_nodes
            if other.op != "placeholder" and other not in self.by_torch
        }
        self.by_torch.add(node)
        self.parts.append(TorchPart(node, values))

    def _value_or_self(self, example: object) -> object:
        return self.lowering.known(example) or example

    def _flush(self) -> None:
        """What was emitted since the last part becomes one."""
        end = len(self.lowering.assembly.instructions)
        begin = max((p.end for p in self.parts if isinstance(p, NativePart)), default=0)
        if end > begin:
            self.parts.append(NativePart(begin, end))


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in VIEWS
    return node.op == "call_function" and node.target is operator.getitem


def _tensors(example: object) -> Iterator[Tensor]:
    if isinstance(example, Tensor):
        yield example
    elif isinstance(example, tuple | list):
        for part in example:
            yield from _tensors(part)
