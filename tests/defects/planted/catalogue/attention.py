"""Attention over the paged cache, and the operations that core's own is made of."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from infercore.backend import Attention, AttentionBatch
from infercore.executor import CopyDirection, GroupKind, KVGroup
from infercore.model_spec import AttentionSpec
from infercore.step import Int32
from planted.defect import defect, replaced

if TYPE_CHECKING:
    from torch import Tensor

Make = Callable[[KVGroup, Sequence[AttentionSpec]], Attention]
Plan = Callable[[AttentionBatch], object]
Forward = Callable[..., "Tensor"]
SIZE = 16  # tokens of a block, in the suite's own choice
TILE = "ops.attention_tile"


@defect(at="Backend.attention", caught_by="ops.attention.window")
def window_is_ignored(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """All positions are read, whatever the window."""
    return right(replace(group, kind=GroupKind.FULL, window=None), specs)


@defect(at="Backend.attention", caught_by="ops.attention.window")
def window_is_one_more(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """The window does not count the query's own position."""
    return right(replace(group, window=None if group.window is None else group.window + 1), specs)


@defect(at="Backend.attention", caught_by="ops.attention.window")
def window_is_one_less(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """The last position of the window is not read."""
    window = None if group.window is None else max(1, group.window - 1)
    return right(replace(group, window=window), specs)


@defect(at="Backend.attention", caught_by="ops.attention.softcap")
def softcap_is_missing(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """Scores are not capped."""
    return right(group, [replace(spec, softcap=None) for spec in specs])


@defect(at="Backend.attention", caught_by="ops.attention.softcap")
def softcap_is_before_the_scale(
    right: Make, group: KVGroup, specs: Sequence[AttentionSpec]
) -> Attention:
    """The cap is that of scores that are not scaled yet."""
    caps = [None if s.softcap is None else s.softcap * s.scale for s in specs]
    return right(group, [replace(s, softcap=c) for s, c in zip(specs, caps, strict=True)])


@defect(at="Backend.attention", caught_by="ops.attention.heads")
def scale_is_of_twice_the_head(
    right: Make, group: KVGroup, specs: Sequence[AttentionSpec]
) -> Attention:
    """Scores are scaled for heads of twice the size."""
    return right(group, [replace(spec, scale=spec.scale * 2**-0.5) for spec in specs])


@defect(at="Backend.attention", caught_by="ops.attention.heads")
def scale_of_the_first_layer(
    right: Make, group: KVGroup, specs: Sequence[AttentionSpec]
) -> Attention:
    """All layers of a group are scaled as its first one."""
    return right(group, [replace(spec, scale=specs[0].scale) for spec in specs])


@defect(at="Backend.attention", caught_by="ops.attention.heads")
def heads_are_interleaved(right: Make, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
    """Query head h reads KV head h modulo their number, and not its neighbours'."""
    kv = specs[0].num_kv_heads

    def forward(right: Forward, layer: int, q: "Tensor", *rest: Any) -> "Tensor":
        tokens, heads, dim = q.shape
        turned = q.reshape(tokens, -1, kv, dim).transpose(1, 2).reshape(tokens, heads, dim)
        out = right(layer, turned, *rest)
        return out.reshape(tokens, kv, -1, dim).transpose(1, 2).reshape(tokens, heads, dim)

    return replaced(right(group, specs), "forward", forward)


@defect(at="Attention.forward", caught_by="ops.attention.heads")
def values_are_the_keys(
    right: Forward, layer: int, q: "Tensor", k: "Tensor", v: "Tensor", plan: object
) -> "Tensor":
    """Keys are written in the place of values."""
    return right(layer, q, k, k, plan)


@defect(at="Attention.forward", caught_by="ops.attention.heads")
def layers_share_a_cache(
    right: Forward, layer: int, q: "Tensor", k: "Tensor", v: "Tensor", plan: object
) -> "Tensor":
    """All layers write into the cache of the first."""
    return right(0, q, k, v, plan)


@defect(at="Attention.forward", caught_by="ops.attention.chunks", stateful=True)
def later_keys_are_halved() -> Callable[..., "Tensor"]:
    """Keys of later steps are stored at half their size."""
    steps: list[int] = []

    def forward(right: Forward, layer: int, q: "Tensor", k: Any, v: Any, plan: object) -> "Tensor":
        steps.append(layer)
        return right(layer, q, k / 2 if len(steps) > 4 else k, v, plan)

    return forward


@defect(at="Attention.plan", caught_by="ops.attention.lengths")
def newest_key_is_not_read(right: Plan, batch: AttentionBatch) -> object:
    """A decode reads what was there before its step."""
    counts = np.diff(batch.host_query_start)
    shorter = np.where((counts == 1) & (batch.host_context_len > 1), 1, 0).astype(np.int32)
    host = batch.host_context_len - shorter
    there = batch.context_len - batch.context_len.new_tensor(shorter.tolist())
    return right(replace(batch, host_context_len=host, context_len=there))


@defect(at="Attention.plan", caught_by="ops.attention.stale")
def last_block_is_read_whole(right: Plan, batch: AttentionBatch) -> object:
    """A decode reads its last block to the end, whatever stands behind its own."""
    counts, context = np.diff(batch.host_query_start), batch.host_context_len
    whole = np.where(counts == 1, -(-context // SIZE) * SIZE, context).astype(np.int32)
    there = batch.context_len.new_tensor(whole.tolist())
    return right(replace(batch, host_context_len=whole, context_len=there))


@defect(at="Attention.plan", caught_by="ops.attention.lengths")
def table_of_the_first_row(right: Plan, batch: AttentionBatch) -> object:
    """All rows read the first row's blocks."""
    return right(replace(batch, block_table=batch.block_table[:1].expand_as(batch.block_table)))


@defect(at="Attention.plan", caught_by="ops.attention.block_order")
def blocks_rise(right: Plan, batch: AttentionBatch) -> object:
    """A row's blocks are read in rising order."""
    return right(replace(batch, block_table=batch.block_table.sort(dim=-1).values))


@defect(at="Attention.plan", caught_by="ops.attention.stale", base="plain")
def stale_blocks_are_read(right: Plan, batch: AttentionBatch) -> object:
    """Blocks are handed out again as they were left, and masked positions are multiplied."""
    return right(replace(batch, fresh_blocks=batch.fresh_blocks[:0]))


@defect(at="Attention.copy_blocks", caught_by="ops.attention.copy")
def last_block_is_not_copied(
    right: Callable[..., None], src: Int32, dst: Int32, direction: CopyDirection
) -> None:
    """A copy leaves out its last block."""
    right(src[:-1], dst[:-1], direction)


@defect(at="Attention.copy_blocks", caught_by="ops.attention.copy")
def blocks_are_copied_backwards(
    right: Callable[..., None], src: Int32, dst: Int32, direction: CopyDirection
) -> None:
    """Targets are filled from the highest number down."""
    right(src, -np.sort(-dst), direction)


@defect(at="Ops.attention", caught_by=TILE)
def tile_is_scaled_twice(
    right: Forward, q: "Tensor", k: "Tensor", v: "Tensor", scale: float, *rest: Any
) -> "Tensor":
    """A tile's scores are twice as large as they are to be."""
    return right(q, k, v, 2 * scale, *rest)


@defect(at="Ops.attention", caught_by=TILE)
def tile_has_no_softcap(
    right: Forward, q: "Tensor", k: "Tensor", v: "Tensor", scale: float, cap: Any, *rest: Any
) -> "Tensor":
    """A tile's scores are not capped."""
    return right(q, k, v, scale, None, *rest)


@defect(at="Ops.attention", caught_by=TILE)
def tile_has_no_mask(
    right: Forward, q: Any, k: Any, v: Any, scale: float, cap: Any, mask: Any, causal: bool
) -> "Tensor":
    """A tile's mask is not added."""
    return right(q, k, v, scale, cap, None, causal)


@defect(at="Ops.attention", caught_by=TILE)
def tile_is_not_causal(
    right: Forward, q: Any, k: Any, v: Any, scale: float, cap: Any, mask: Any, causal: bool
) -> "Tensor":
    """A tile's queries see the future."""
    return right(q, k, v, scale, cap, mask, False)


@defect(at="Ops.attention", caught_by=TILE, base="plain")
def tile_is_in_the_compute_dtype(right: Forward, q: "Tensor", *rest: Any) -> "Tensor":
    """A tile's result is rounded to the dtype of its queries."""
    return right(q, *rest).to(q.dtype)


@defect(at="Ops.kv_write", caught_by="ops.kv_write")
def keys_are_one_row_off(
    right: Callable[..., None], cache: "Tensor", rows: "Tensor", x: "Tensor"
) -> None:
    """Keys are stored in the row of the token before."""
    right(cache, rows.roll(1), x)


@defect(at="Ops.kv_write", caught_by="ops.kv_write")
def keys_are_stored_token_by_token(
    right: Callable[..., None], cache: "Tensor", rows: "Tensor", x: "Tensor"
) -> None:
    """Rows are taken to be ordered by token, and not by head."""
    right(cache, rows.view(len(x), -1).T.flatten(), x)
