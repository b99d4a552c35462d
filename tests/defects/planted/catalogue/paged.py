"""Attention over a paged cache, in the company of other rows, padding and other blocks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from infercore.backend import Attention, AttentionBatch
from infercore.executor import CopyDirection, GroupKind, KVGroup
from infercore.model_spec import AttentionSpec
from infercore.step import Int32
from planted.defect import defect

if TYPE_CHECKING:
    from torch import Tensor

Make = Callable[[KVGroup, Sequence[AttentionSpec]], Attention]
Plan = Callable[[AttentionBatch], object]
Forward = Callable[..., "Tensor"]
SIZE = 16  # tokens of a block, in the suite's own choice


def _windowed(group: KVGroup, most: int) -> KVGroup:
    """`group` with a window of `most` positions, or its own if that is smaller."""
    return replace(group, kind=GroupKind.WINDOW, window=min(group.window or most, most))


@defect(at="Attention.plan", caught_by="ops.attention.mixed")
def decodes_come_first(right: Plan, batch: AttentionBatch) -> object:
    """The first block tables of a step are taken to be those of its decodes."""
    order = np.argsort(np.diff(batch.host_query_start) != 1, kind="stable")
    return right(replace(batch, block_table=batch.block_table[order.tolist()]))


@defect(at="Backend.attention", caught_by="ops.attention.large_scores")
def scores_are_kept_small(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """Scores are kept below the largest exponential by a cap that the model does not have."""
    return right(group, [replace(spec, softcap=spec.softcap or 88.0) for spec in specs])


@defect(at="Backend.attention", caught_by="ops.attention.block_sizes")
def large_blocks_are_read_in_part(
    right: Make, group: KVGroup, specs: Sequence[AttentionSpec]
) -> Attention:
    """Where blocks hold more than 32 tokens, no more than the last 32 positions are read."""
    return right(_windowed(group, 32) if group.block_size > 32 else group, specs)


@defect(at="Attention.plan", caught_by="ops.attention.many_rows")
def rows_have_the_tables_of_the_first(right: Plan, batch: AttentionBatch) -> object:
    """Rows beyond the sixteenth read the blocks of those before."""
    rows = [row % 16 for row in range(len(batch.block_table))]
    return right(replace(batch, block_table=batch.block_table[rows]))


@defect(at="Backend.attention", caught_by="ops.attention.long")
def long_contexts_are_cut(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """No more than 512 keys are read, since work is not split beyond them."""
    return right(_windowed(group, 512), specs)


@defect(at="Attention.plan", caught_by="ops.attention.padding")
def padding_is_written_to_the_first_row(right: Plan, batch: AttentionBatch) -> object:
    """Keys of padding are stored where the step's first token is."""
    there = batch.slot_mapping
    return right(replace(batch, slot_mapping=there.where(there >= SIZE, there[:1])))


@defect(at="Attention.forward", caught_by="ops.attention.other_rows")
def keys_share_a_scale(
    right: Forward, layer: int, q: "Tensor", k: "Tensor", v: Any, plan: object
) -> "Tensor":
    """All keys of a step are scaled by what is largest in any of them, and back."""
    return right(layer, q, k + 0 * k.abs().max(), v, plan)


@defect(at="Attention.plan", caught_by="ops.attention.shared")
def blocks_belong_to_one_row(right: Plan, batch: AttentionBatch) -> object:
    """A block is read for the first row that names it, and for no other."""
    table = batch.block_table.numpy()
    _, first = np.unique(table, return_index=True)
    own = np.zeros_like(table)
    own.flat[first] = table.flat[first]
    return right(replace(batch, block_table=batch.block_table.new_tensor(own.tolist())))


@defect(
    at="Attention.allocate",
    caught_by="ops.attention.allocate",
    cause="IndexError",
    stateful=True,
    base="plain",
)
def first_allocation_stays() -> Callable[[Callable[[int], None], int], None]:
    """A cache is allocated once, and what is asked for later is ignored."""
    asked: list[int] = []

    def allocate(right: Callable[[int], None], num_blocks: int) -> None:
        asked.append(num_blocks)
        if len(asked) == 1:
            right(num_blocks)

    return allocate


@defect(at="Attention.forward", caught_by="ops.attention.kv_dtype")
def cache_is_bfloat16(
    right: Forward, layer: int, q: "Tensor", k: "Tensor", v: "Tensor", plan: object
) -> "Tensor":
    """Keys and values are kept in bfloat16, whatever dtype was chosen for the cache."""
    return right(layer, q, k.bfloat16().to(k.dtype), v.bfloat16().to(v.dtype), plan)


@defect(at="Attention.copy_blocks", caught_by="ops.attention.copy")
def sources_rise(
    right: Callable[..., None], src: Int32, dst: Int32, direction: CopyDirection
) -> None:
    """Blocks are read from the lowest number up, whatever their targets are."""
    right(np.sort(src), dst, direction)
