"""A lowered decoder: runs its program, and what torch does in between."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from infercore_cpu.attention import Plan
from infercore_cpu.lowering import Lowering
from infercore_cpu.native import aligned
from infercore_cpu.program import OUTPUT, Program, Step, Value, array_of


@dataclass(frozen=True, slots=True)
class NativePart:
    """Instructions [begin, end)."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TorchPart:
    """One node of the graph. values: what it reads of the arena, by the node that gave it."""

    node: fx.Node
    values: Mapping[fx.Node, Any]


@dataclass(frozen=True, slots=True)
class ToArena:
    """What torch made, for instructions to read."""

    node: fx.Node
    value: Value


Part: TypeAlias = NativePart | TorchPart | ToArena

OUT_OF_RANGE = {1: ("token id", "vocab"), 2: ("position", "positions")}  # by what the call returns


def each(values: object, function: Callable[[object], object]) -> object:
    """The function's results in place of what tuples and lists hold."""
    if isinstance(values, tuple | list):
        return type(values)(each(value, function) for value in values)
    return function(values)


class LoweredDecoder(nn.Module):
    """Tokens to hidden states, as the decoder that it was made from, which it keeps.

    The arena grows with the largest step. parts: what runs, in order; whole: it is one call.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.GraphModule,
        lib: ctypes.CDLL,
        lowering: Lowering,
        parts: Sequence[Part],
        result: fx.Node,
        value: Value | None,
    ) -> None:
        """result, value: what the graph returns, and where it lies if instructions made it."""
        super().__init__()
        self.model = model
        self.parts = tuple(parts)
        self.dtype = lowering.dtype
        self.whole = len(self.parts) == 1 and isinstance(self.parts[0], NativePart)
        self._graph = graph
        self._assembly = lowering.assembly
        self._result, self._value = result, value
        self._bytes = lowering.assembly.finish()
        self._instructions, address = array_of(lowering.assembly.instructions)
        limits = lowering.limits
        self._program = Program(
            address, lowering.dtype == torch.bfloat16, limits.vocab, limits.positions
        )
        self._step = Step()
        self._groups = (c_void_p * 0)()
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._run = lib.infercore_step

    def forward(self, ids: Tensor, positions: Tensor, plans: Sequence[object]) -> Tensor:
        """ids, positions [T]; plans: one per KV group. Returns [T, E].

        Raises ValueError for an id or a position that the model has no table entry for.
        """
        tokens = len(ids)
        ids, positions = ids.contiguous(), positions.contiguous()
        self._reserve(tokens * self._bytes)
        output = self._output(tokens)
        step = self._step
        step.ids, step.positions, step.tokens = ids.data_ptr(), positions.data_ptr(), tokens
        step.arena, step.groups = self._arena.data_ptr(), self._planned(plans)
        step.output = None if output is None else output.data_ptr()
        if self.whole:
            self._native(self.parts[0])
            assert output is not None
            return output
        return self._mixed(ids, positions, plans, output)

    def _planned(self, plans: Sequence[object]) -> int:
        """Where the plans' arguments are listed, until the next step's are."""
        if len(plans) != len(self._groups):
            self._groups = (c_void_p * len(plans))()
        for group, plan in enumerate(plans):
            self._groups[group] = ctypes.addressof(plan.args) if isinstance(plan, Plan) else None
        return ctypes.addressof(self._groups)

    def _output(self, tokens: int) -> Tensor | None:
        if self._value is None or self._value.buffer.place != OUTPUT:
            return None
        return torch.empty((tokens, *self._value.inner), dtype=self.dtype)

    def _reserve(self, size: int) -> None:
        if size > len(self._arena):
            self._arena = torch.empty(0, dtype=torch.uint8)  # gone before the next one comes
            self._arena = torch.from_numpy(aligned(size))

    def _native(self, part: Part) -> None:
        assert isinstance(part, NativePart)
        failed = self._run(byref(self._program), byref(self._step), part.begin, part.end)
        if failed:
            what, limit = OUT_OF_RANGE[failed]
            raise ValueError(
                f"a {what} of the step is not within 0 and {getattr(self._program, limit)}"
            )

    def _mixed(
        self, ids: Tensor, positions: Tensor, plans: Sequence[object], output: Tensor | None
    ) -> Tensor:
        interpreter = fx.Interpreter(self._graph, garbage_collect_values=False)
        given = (node for node in self._graph.graph.nodes if node.op == "placeholder")
        results: dict[fx.Node, Any] = interpreter.env
        results.update(zip(given, (ids, positions, plans), strict=True))

        def tensor(value: object) -> object:
            if not isinstance(value, Value):
                return value
            return self._assembly.view(value, self._arena, output, len(ids))

        for part in self.parts:
            if isinstance(part, NativePart):
                self._native(part)
            elif isinstance(part, ToArena):
                self._assembly.view(part.value, self._arena, output, len(ids)).copy_(
                    results[part.node]
                )
            else:
                for node, values in part.values.items():
                    results[node] = each(values, tensor)
                results[part.node] = interpreter.run_node(part.node)
        if output is not None:
            return output
        found = results[self._result] if self._value is None else tensor(self._value)
        assert isinstance(found, Tensor)
        return found.clone()  # the arena is the next step's
