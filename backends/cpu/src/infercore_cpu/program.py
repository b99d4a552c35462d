"""A program for native/step.h: its instructions, and where their operands lie in the arena."""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, Union, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

NOWHERE, OUTPUT = -1, -2  # as a place
ALIGNMENT = 64  # bytes, of a buffer's begin
FOREVER = 2**31  # as a phase

# operations, in step.h's order
EMBED, NORM, ARRANGE, ROUND, ROPE, ACTIVATE, WRITE, LINEAR, ACTIVATED, ATTEND = range(10)
FLOATS, PAIRS, ROUNDED = range(3)  # what a product reads


class Operand(Structure):
    """`Operand` of native/step.h: where an activation lies."""

    _fields_ = (("place", c_int64), ("stride", c_int32), ("first", c_int32))


class EmbedOf(Structure):
    """`EmbedOf` of native/step.h: tables that ids and positions look up."""

    _fields_ = (
        ("table", c_void_p),
        ("positions", c_void_p),
        ("scale", c_float),
        ("size", c_int32),
    )


class NormOf(Structure):
    """`NormOf` of native/step.h: a norm's parameters, and how a token is cut into its rows."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        *((name, c_int32) for name in ("per_token", "size", "weights", "centered")),
        ("eps", c_float),
    )


class RopeOf(Structure):
    """`RopeOf` of native/step.h: tables of angles by position."""

    _fields_ = (("cos", c_void_p), ("sin", c_void_p), ("heads", c_int32), ("dim", c_int32))


class ActivateOf(Structure):
    """`ActivateOf` of native/step.h: which activation, of how many outputs."""

    _fields_ = (("size", c_int32), ("activation", c_int32), ("gated", c_int32))


class LinearOf(Structure):
    """`LinearOf` of native/step.h: a product, and what reads or follows it."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        *((name, c_int32) for name in ("x_form", "activation", "gated")),
    )


class AttendOf(Structure):
    """`AttendOf` of native/step.h: a layer's place in its KV group, and what its scores are."""

    _fields_ = (
        *((name, c_int32) for name in ("group", "member", "heads")),
        ("scale", c_float),
        ("softcap", c_float),
    )


PARAMETERS: dict[type[Structure], str] = {
    EmbedOf: "embed",
    NormOf: "norm",
    RopeOf: "rope",
    ActivateOf: "activate",
    LinearOf: "linear",
    AttendOf: "attend",
}


class _Parameters(Union):
    _fields_ = tuple((name, kind) for kind, name in PARAMETERS.items())


class Instruction(Structure):
    """`Instruction` of native/step.h: one instruction."""

    _anonymous_ = ("parameters",)
    _fields_ = (
        ("op", c_int32),
        *((name, Operand) for name in ("x", "y", "out", "sum")),
        ("parameters", _Parameters),
    )


class Program(Structure):
    """`Program` of native/step.h: what does not change from step to step."""

    _fields_ = (
        ("instructions", c_void_p),
        *((name, c_int32) for name in ("bfloat16", "vocab", "positions")),
    )


class Step(Structure):
    """`Step` of native/step.h: one step."""

    _fields_ = (
        *((name, c_void_p) for name in ("ids", "positions", "arena", "output", "groups")),
        ("tokens", c_int32),
    )


@dataclass(eq=False, slots=True)
class Buffer:
    """Memory of every token. size: bytes of one.

    born, last: the phases that use it first and last. place: bytes per token of what lies before.
    """

    size: int
    born: int = FOREVER
    last: int = 0
    place: int = NOWHERE


@dataclass(frozen=True, slots=True)
class Value:
    """An activation [T, *inner] in a buffer. stride, first: numbers; see Operand."""

    buffer: Buffer
    stride: int
    first: int
    inner: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers of one token."""
        return prod(self.inner)

    @property
    def whole(self) -> bool:
        """Whether tokens follow each other without gaps."""
        return self.first == 0 and self.stride == self.size

    def part(self, first: int, size: int) -> "Value":
        """Some of each token's numbers."""
        return Value(self.buffer, self.stride, self.first + first, (size,))


@dataclass(slots=True)
class Assembly:
    """Instructions as they are made, and the buffers that they need.

    phase: of the last instruction, or of what torch does. Instructions by rows that stand side by
    side share one, in which some tokens are ahead of others.
    """

    dtype: torch.dtype
    instructions: list[Instruction] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    phase: int = 0
    _by_rows: bool = False
    _operands: list[tuple[int, str, Value]] = field(default_factory=list)

    def value(self, inner: Sequence[int], size: int | None = None) -> Value:
        """A new buffer of its own. size: bytes of a token; None = numbers in the dtype."""
        numbers = prod(inner)
        buffer = Buffer(size or numbers * self.dtype.itemsize)
        self.buffers.append(buffer)
        return Value(buffer, numbers, 0, tuple(inner))

    def use(self, value: Value) -> Value:
        """What happens in this phase reads or writes it."""
        value.buffer.born = min(value.buffer.born, self.phase)
        value.buffer.last = max(value.buffer.last, self.phase)
        return value

    def leave(self) -> None:
        """Begin a phase of torch's."""
        self.phase += 1
        self._by_rows = False

    def emit(self, op: int, parameters: Structure | None = None, **operands: Value) -> None:
        """Append an instruction. operands: x, y, out and sum, where it has them."""
        if not (self._by_rows and op < LINEAR):
            self.phase += 1
        self._by_rows = op < LINEAR
        made = Instruction(op)
        for name in ("x", "y", "out", "sum"):
            getattr(made, name).place = NOWHERE
        if parameters is not None:
            setattr(made, PARAMETERS[type(parameters)], parameters)
        for name, value in operands.items():
            self._operands.append((len(self.instructions), name, self.use(value)))
        self.instructions.append(made)

    def finish(self) -> int:
        """Give buffers their places, and instructions theirs. Returns the arena's bytes per token.

        Buffers that are never alive at once share memory.
        """
        total = 0
        placed: list[Buffer] = []
        for buffer in self.buffers:
            if buffer.place == OUTPUT:
                continue
            alive = sorted(
                (other.place, _rounded_up(other.size))
                for other in placed
                if other.last >= buffer.born and other.born <= buffer.last
            )
            buffer.place = 0
            for place, size in alive:
                if buffer.place + buffer.size <= place:
                    break
                buffer.place = max(buffer.place, place + size)
            placed.append(buffer)
            total = max(total, buffer.place + _rounded_up(buffer.size))
        for index, name, value in self._operands:
            operand = Operand(value.buffer.place, value.stride, value.first)
            setattr(self.instructions[index], name, operand)
        return total

    def view(self, value: Value, arena: Tensor, output: Tensor | None, tokens: int) -> Tensor:
        """The value's memory as a tensor [T, *inner]. Only of numbers in the dtype."""
        if value.buffer.place == OUTPUT:
            assert output is not None
            return output.view(tokens, *value.inner)
        begin = value.buffer.place * tokens
        numbers = arena[begin : begin + value.buffer.size * tokens].view(self.dtype)
        strides = [prod(value.inner[i + 1 :]) for i in range(len(value.inner))]
        return numbers.as_strided(
            (tokens, *value.inner), (value.stride, *strides), numbers.storage_offset() + value.first
        )


def array_of(items: Sequence[Instruction]) -> tuple[object, int]:
    """A C array of them: what keeps it alive, and its address."""
    array = (Instruction * len(items))(*items)
    return array, ctypes.addressof(array)


def _rounded_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
