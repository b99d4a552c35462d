"""The native forms of core's layers, as instructions; see native/step.h.

A layer of exactly one of core's classes, over this backend's operations, weights and cache, has a
form. Anything else has none: a subclass may compute something else.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from infercore.layers.common import Layer, Norm
from infercore.layers.decoder import Activation, Attend
from infercore.layers.linear import Embedding, Linear
from infercore.layers.rope import Rotary
from infercore_cpu import program
from infercore_cpu.attention import NativeAttention
from infercore_cpu.linear import NativeLinear
from infercore_cpu.native import KINDS, PANEL, STEPS, LinearWeight, Packed
from infercore_cpu.ops import ACTIVATIONS, CpuOps
from infercore_cpu.program import Assembly, Value


@dataclass(frozen=True, slots=True)
class Angles:
    """A rotary layer's tables, at the step's own positions."""

    rotary: Rotary

    @property
    def dim(self) -> int:
        return int(self.rotary.cos.shape[-1])


@dataclass(slots=True)
class Limits:
    """Ids, and positions, that the tables of a program hold."""

    vocab: int = 2**31 - 1
    positions: int = 2**31 - 1


class Lowering:
    """Emits the forms of layers. Each takes the example of what the layer gives, [T, ...].

    The examples, of real memory, say which value is which: a view of one shares its storage.
    """

    def __init__(self, lib: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.lib = lib
        self.dtype = dtype
        self.assembly = Assembly(dtype)
        self.limits = Limits()
        self._values: dict[int, tuple[Value, int]] = {}  # by storage, with the offset in there

    def define(self, example: Tensor) -> Value:
        """A new value for an example [T, *inner] of the dtype."""
        value = self.assembly.value(example.shape[1:])
        self._values[_storage(example)] = (value, int(example.storage_offset()))
        return value

    def holds(self, example: Tensor) -> bool:
        """Whether an example lies in the memory of a value, in whatever way."""
        return _storage(example) in self._values

    def touch(self, example: Tensor) -> None:
        """What happens now uses the value that the example lies in, if it lies in one."""
        if self.holds(example):
            self.assembly.use(self._values[_storage(example)][0])

    def known(self, example: object) -> Value | None:
        """The value of an example that is one, or shows some of each token's numbers of one."""
        if not isinstance(example, Tensor) or example.dim() < 2 or example.dtype != self.dtype:
            return None
        found = self._values.get(_storage(example))
        if found is None:
            return None
        value, offset = found
        first, inner = int(example.storage_offset()) - offset, tuple(example.shape[1:])
        part = Value(value.buffer, value.stride, first, inner)
        in_token = example.stride(0) == value.stride and example[0].is_contiguous()
        return part if in_token and 0 <= first <= value.stride - part.size else None

    def embedding(self, layer: Layer, example: Tensor) -> bool:
        """Of the step's own ids and positions."""
        if type(layer) is not Embedding or not self._plain(layer.ops):
            return False
        tables = [layer.table] if layer.positions is None else [layer.table, layer.positions]
        if layer.collective is not None or any(not self._numbers(table) for table in tables):
            return False
        self.limits.vocab = min(self.limits.vocab, len(layer.table))
        parameters = program.EmbedOf(table=layer.table.data_ptr(), size=layer.table.shape[1])
        # as rounded as the layer has it
        parameters.scale = float(torch.tensor(layer.scale, dtype=self.dtype))
        if layer.positions is not None:
            self.limits.positions = min(self.limits.positions, len(layer.positions))
            parameters.positions = layer.positions.data_ptr()
        self.assembly.emit(program.EMBED, parameters, out=self.define(example))
        return True

    def norm(self, layer: Layer, x: Value, residual: Value | None, example: list[Tensor]) -> bool:
        if type(layer) is not Norm or not self._plain(layer.ops):
            return False
        size = layer.weight.shape[-1]
        if x.size % size or not (residual is None or residual.whole):
            return False
        parameters = program.NormOf(
            weight=layer.weight.data_ptr(),
            bias=None if layer.bias is None else layer.bias.data_ptr(),
            per_token=x.size // size,
            size=size,
            weights=layer.weight.numel() // size,
            centered=layer.specs[0].centered,
            eps=layer.specs[0].eps,
        )
        operands = {"x": x, "out": self.define(example[0])}
        if residual is not None:
            operands |= {"y": residual, "sum": self.define(example[1])}
        self.assembly.emit(program.NORM, parameters, **operands)
        return True

    def linear(
        self,
        layer: Layer,
        x: Value,
        example: Tensor,
        then: tuple[Activation, Tensor] | None = None,
    ) -> bool:
        """then: the activation that alone reads the product, and the example of what it gives."""
        if type(layer) is not Linear or not self._plain(layer.ops) or layer.reduce is not None:
            return False
        if type(layer.packed) is not NativeLinear or x.size != layer.packed.packed.shape[1]:
            return False
        if layer.bias is not None and not self._numbers(layer.bias):
            return False
        x, form = self._arranged(layer.packed.packed, x)
        parameters = program.LinearOf(
            weight=layer.packed.packed.address,
            bias=None if layer.bias is None else layer.bias.data_ptr(),
            x_form=form,
        )
        product = self.define(example)
        if then is None:
            self.assembly.emit(program.LINEAR, parameters, x=x, out=product)
            return True
        activation, after = then
        parameters.activation = ACTIVATIONS[activation.spec.activation]
        parameters.gated = activation.spec.gated
        out = self.define(after)
        self.assembly.emit(program.ACTIVATED, parameters, x=x, y=product, out=out)
        return True

    def joins(self, layer: object, product: Tensor) -> bool:
        """Whether an activation may be computed with the product that it alone reads."""
        if type(layer) is not Activation or not self._activates(layer):
            return False
        return not layer.spec.gated or product.shape[-1] % (2 * PANEL) == 0

    def activation(self, layer: Layer, x: Value, example: Tensor) -> bool:
        if type(layer) is not Activation or not self._activates(layer) or len(x.inner) != 1:
            return False
        parameters = program.ActivateOf(
            example.shape[1], ACTIVATIONS[layer.spec.activation], layer.spec.gated
        )
        self.assembly.emit(program.ACTIVATE, parameters, x=x, out=self.define(example))
        return True

    def attend(
        self, layer: Layer, qk: Value, v: Value, angles: Angles | None, example: Tensor
    ) -> bool:
        """Over the step's own plans."""
        if type(layer) is not Attend or not self._plain(layer.ops):
            return False
        if type(layer.cache) is not NativeAttention or layer.spec.num_kv_heads != v.inner[0]:
            return False
        dim, heads, kv_heads = layer.spec.head_dim, layer.spec.num_heads, layer.spec.num_kv_heads
        if qk.inner != (heads + kv_heads, dim) or not (angles is None or angles.dim == dim):
            return False
        if angles is not None:
            qk = self._rotated(qk, angles)
        parameters = program.AttendOf(
            layer.group, layer.member, heads, layer.spec.scale, layer.spec.softcap or 0.0
        )
        q, k = qk.part(0, heads * dim), qk.part(heads * dim, kv_heads * dim)
        self.assembly.emit(program.WRITE, parameters, x=k, y=v)
        self.assembly.emit(program.ATTEND, parameters, x=q, out=self.define(example))
        return True

    def _rotated(self, x: Value, angles: Angles) -> Value:
        self.limits.positions = min(self.limits.positions, angles.rotary.length)
        parameters = program.RopeOf(
            angles.rotary.cos.data_ptr(), angles.rotary.sin.data_ptr(), x.inner[0], angles.dim
        )
        out = self.assembly.value(x.inner)
        self.assembly.emit(program.ROPE, parameters, x=x, out=out)
        return out

    def _arranged(self, packed: Packed, x: Value) -> tuple[Value, int]:
        """x as a product with the weight reads it, and the form that this is."""
        weight = LinearWeight.from_address(packed.address)
        parameters = program.LinearOf(weight=packed.address)
        if weight.rounds:
            size = self.lib.infercore_rounded_bytes(packed.address)
            out = self.assembly.value((weight.k,), size)
            self.assembly.emit(program.ROUND, parameters, x=x, out=out)
            return out, program.ROUNDED
        kind, narrow = KINDS[weight.kind], self.dtype == torch.bfloat16
        count = weight.lines * STEPS[kind]
        pairs = narrow and kind == "bfloat16" and bool(self.lib.infercore_pairs())
        form = program.PAIRS if pairs else program.FLOATS
        in_order = weight.columns is None and count == weight.k
        if in_order and (x.first % 2 == x.stride % 2 == 0 if pairs else not narrow):
            return x, form
        parameters.x_form = form
        out = self.assembly.value((count,), count * (2 if pairs else 4))
        self.assembly.emit(program.ARRANGE, parameters, x=x, out=out)
        return out, form

    def _plain(self, ops: object) -> bool:
        return type(ops) is CpuOps

    def _numbers(self, parameter: Tensor) -> bool:
        return parameter.dtype == self.dtype and parameter.is_contiguous()

    def _activates(self, layer: Activation) -> bool:
        return self._plain(layer.ops) and layer.spec.activation in ACTIVATIONS


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
