"""Weights: what a backend makes of the kinds that it packs."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from infercore.backend import PackedLinear
from infercore.kinds import Codebook4, Codebook8, Dense, Fp8, IntGrouped, Kind
from planted.defect import defect

if TYPE_CHECKING:
    from torch import Tensor

INTEGERS, CODES, FLOATS = "quant.int_grouped", "quant.codebook4", "quant.fp8"


@defect(at="pack", caught_by="quant.dense")
def matrices_are_transposed(kind: Kind) -> Kind:
    """A dense matrix is read by columns."""
    return replace(kind, data=kind.data.T.reshape(kind.shape)) if isinstance(kind, Dense) else kind


@defect(at="pack", caught_by=INTEGERS)
def group_map_is_ignored(kind: Kind) -> Kind:
    """Neighbouring columns are a group, whatever the map says."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, group_of_row=np.sort(kind.group_of_row))


@defect(at="pack", caught_by=INTEGERS)
def groups_have_their_neighbours_scale(kind: Kind) -> Kind:
    """A group has the scales of the one before it."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, scales=replace(kind.scales, data=np.roll(kind.scales.data, 1, axis=0)))


@defect(at="pack", caught_by=INTEGERS)
def zeros_are_one_more(kind: Kind) -> Kind:
    """A zero is stored less one, as older checkpoints have it."""
    return replace(kind, zeros=kind.zeros + np.int16(1)) if isinstance(kind, IntGrouped) else kind


@defect(at="pack", caught_by=INTEGERS)
def zeros_are_in_the_middle(kind: Kind) -> Kind:
    """Integers are taken to be symmetric."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, zeros=np.full_like(kind.zeros, 2 ** (kind.bits - 1)))


@defect(at="pack", caught_by=INTEGERS)
def zeros_are_cut_to_their_bits(kind: Kind) -> Kind:
    """A zero of 2^bits, one more than a code, becomes 0."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, zeros=kind.zeros % np.int16(2**kind.bits))


@defect(at="pack", caught_by=INTEGERS)
def cells_are_swapped(kind: Kind) -> Kind:
    """The upper half of a byte is its first code."""
    if not isinstance(kind, IntGrouped) or kind.bits == 8:
        return kind
    return replace(kind, codes=kind.codes >> np.uint8(4) | kind.codes << np.uint8(4))


@defect(at="pack", caught_by=CODES)
def table_is_shifted(kind: Kind) -> Kind:
    """A code is worth what the code before it is."""
    return replace(kind, table=np.roll(kind.table, 1)) if isinstance(kind, Codebook4) else kind


@defect(at="pack", caught_by=CODES)
def blocks_have_one_scale(kind: Kind) -> Kind:
    """All blocks of a row have the scale of the first one."""
    if not isinstance(kind, Codebook4):
        return kind
    scales = kind.scales.dequantize()
    return replace(kind, scales=Dense(np.repeat(scales[:, :1], scales.shape[1], 1), "float32"))


@defect(at="pack", caught_by="quant.codebook8")
def offsets_are_ignored(kind: Kind) -> Kind:
    """The mean that was taken off a row is not put back."""
    if not isinstance(kind, Codebook8):
        return kind
    return replace(kind, offsets=np.zeros_like(kind.offsets))


@defect(at="pack", caught_by="quant.codebook8")
def blocks_start_with_their_row(kind: Kind) -> Kind:
    """Blocks are counted from each row's start, and not across rows."""
    if not isinstance(kind, Codebook8):
        return kind
    return replace(kind, row_start=np.zeros_like(kind.row_start))


@defect(at="pack", caught_by=FLOATS)
def floats_are_of_the_other_format(kind: Kind) -> Kind:
    """All 8-bit floats have five bits of exponent."""
    return replace(kind, dtype="float8_e5m2") if isinstance(kind, Fp8) else kind


@defect(at="pack", caught_by=FLOATS)
def subnormals_are_zero(kind: Kind) -> Kind:
    """The smallest 8-bit floats are flushed to zero."""
    if not isinstance(kind, Fp8):
        return kind
    exponent = 0x78 if kind.dtype == "float8_e4m3fn" else 0x7C
    return replace(kind, codes=np.where(kind.codes & exponent, kind.codes, 0).astype(np.uint8))


@defect(at="pack", caught_by=FLOATS)
def floats_have_one_scale(kind: Kind) -> Kind:
    """The scale of the first channel or block is that of the whole matrix."""
    if not isinstance(kind, Fp8):
        return kind
    data = np.full_like(kind.scales.data, kind.scales.data.flat[0])
    return replace(kind, scales=replace(kind.scales, data=data))


@defect(at="pack_head", caught_by="quant.head")
def head_is_rounded(kind: Kind) -> Kind:
    """The head's weight is rounded to bfloat16."""
    bits = np.ascontiguousarray(kind.dequantize()).view(np.uint32) >> 16
    return Dense(bits.astype(np.uint16), "bfloat16")


@defect(at="pack", caught_by="quant.kept")
def buffers_are_packed_in_place(kind: Kind) -> Kind:
    """Packing turns the codes around where they stand."""
    if not isinstance(kind, IntGrouped):
        return kind
    right = replace(kind, codes=kind.codes.copy())
    kind.codes[:] = kind.codes >> 4 | kind.codes << 4
    return right


@defect(at="pack", caught_by="quant.memory.int_grouped")
def integers_are_widened(kind: Kind) -> Kind:
    """A kind that is declared to be native is dequantized at load."""
    return Dense(kind.dequantize(), "float32") if isinstance(kind, IntGrouped) else kind


@defect(at="pack", caught_by="quant.not_finite")
def nan_is_zero(kind: Kind) -> Kind:
    """An entry that is no number is taken for zero."""
    if not isinstance(kind, Dense) or kind.dtype != "float32":
        return kind
    return replace(kind, data=np.nan_to_num(kind.data))


class Told:
    """A packed weight that tells a size of its own, and may round its input on the way."""

    def __init__(
        self, right: PackedLinear, nbytes: int, given: "Callable[[Tensor], Tensor] | None" = None
    ) -> None:
        self._right, self.nbytes, self._given = right, nbytes, given

    def __call__(self, x: "Tensor") -> "Tensor":
        return self._right(x if self._given is None else self._given(x))


@defect(at="Backend.pack", caught_by="quant.memory.told")
def weights_tell_no_bytes(right: Callable[[Kind], PackedLinear], kind: Kind) -> PackedLinear:
    """A weight in the backend's own layout is not counted."""
    return Told(right(kind), 0)


@defect(at="Backend.pack", caught_by="quant.activation")
def inputs_are_always_rounded(right: Callable[[Kind], PackedLinear], kind: Kind) -> PackedLinear:
    """Inputs are rounded as the checkpoint's maker wanted, in float32 too."""
    packed = right(kind)
    if kind.activation is None:
        return packed
    return Told(packed, packed.nbytes, lambda x: x.half().to(x.dtype))
