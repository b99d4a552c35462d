"""Weights in shares and joined weights: what a backend takes for granted about a kind's buffers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from infercore.backend import PackedLinear
from infercore.kinds import Codebook4, Codebook8, Dense, Fp8, IntGrouped, Kind
from planted.catalogue.weights import Told
from planted.defect import defect


def _packed_together(array: NDArray[Any]) -> NDArray[Any]:
    """What is read of an array whose gaps are ignored."""
    strides = np.empty(array.shape, np.void(array.itemsize).dtype).strides
    return as_strided(array, array.shape, strides)


@defect(at="pack", caught_by="quant.shares_n")
def gaps_are_ignored(kind: Kind) -> Kind:
    """The zeros of a share are read on from its first one, as if they had no gaps."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, zeros=_packed_together(kind.zeros))


@defect(at="pack", caught_by="quant.shares_k")
def groups_are_of_equal_size(kind: Kind) -> Kind:
    """The columns are spread evenly over the groups that there are."""
    if not isinstance(kind, IntGrouped):
        return kind
    groups = kind.scales.shape[0]
    spread = np.arange(len(kind.group_of_row)) * groups // len(kind.group_of_row)
    return replace(kind, group_of_row=spread.astype(kind.group_of_row.dtype))


@defect(at="pack", caught_by="quant.joined")
def parts_have_the_first_ones_scale(kind: Kind) -> Kind:
    """Weights of one scale each have that of the first when they are joined."""
    if not isinstance(kind, Fp8) or kind.scales.data.shape[1:] != (1,):
        return kind
    data = np.broadcast_to(kind.scales.data[:1], kind.scales.data.shape)
    return replace(kind, scales=replace(kind.scales, data=np.ascontiguousarray(data)))


@defect(at="pack", caught_by="quant.joined_packings")
def groups_are_few(kind: Kind) -> Kind:
    """Columns of groups beyond the eighth are multiplied as those of the eighth."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, group_of_row=np.minimum(kind.group_of_row, 7))


@defect(at="pack", caught_by="quant.fused")
def float32_is_rounded(kind: Kind) -> Kind:
    """What core dequantized to float32 is kept in bfloat16."""
    if not isinstance(kind, Dense) or kind.dtype != "float32":
        return kind
    bits = np.ascontiguousarray(kind.data).view(np.uint32) >> 16
    return Dense(bits.astype(np.uint16), "bfloat16", kind.activation)


@defect(at="pack", caught_by="ops.linear_kinds")
def zeros_are_left_out(kind: Kind) -> Kind:
    """A code is worth itself times its scale, whatever its group's zero is."""
    return replace(kind, zeros=0 * kind.zeros) if isinstance(kind, IntGrouped) else kind


@defect(at="Backend.pack", caught_by="quant.memory.dense")
def dense_weights_are_kept_twice(right: Callable[[Kind], PackedLinear], kind: Kind) -> PackedLinear:
    """The checkpoint's copy of a dense weight stays beside the packed one."""
    packed = right(kind)
    return Told(packed, packed.nbytes + kind.nbytes) if isinstance(kind, Dense) else packed


@defect(at="pack", caught_by="quant.memory.codebook4")
def table_entries_are_stored(kind: Kind) -> Kind:
    """4-bit codes are looked up in their table at load."""
    return Dense(kind.dequantize(), "float32") if isinstance(kind, Codebook4) else kind


@defect(at="pack", caught_by="quant.memory.codebook8")
def large_table_entries_are_stored(kind: Kind) -> Kind:
    """8-bit codes are looked up in their table at load."""
    return Dense(kind.dequantize(), "float32") if isinstance(kind, Codebook8) else kind


@defect(at="pack", caught_by="quant.memory.fp8")
def small_floats_are_widened(kind: Kind) -> Kind:
    """8-bit floats are widened at load."""
    return Dense(kind.dequantize(), "float32") if isinstance(kind, Fp8) else kind
