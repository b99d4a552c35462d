"""The default attention over a paged cache, in plain torch.

Blocks that the rows read are gathered tile by tile into [H_kv, rows, keys, D], so a step copies
what it reads and never the cache, and a tile's size bounds the copy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercore.backend import Attention, AttentionBatch
from infercore.errors import UnsupportedModel
from infercore.executor import CopyDirection, ExecutorConfig, KVGroup
from infercore.layers.common import torch_dtype
from infercore.layers.ops import Ops
from infercore.model_spec import AttentionSpec
from infercore.step import Int32

TILE_KEYS = 16384  # keys that one tile of single-token rows gathers at most
TILE_WASTE = 2048  # keys that padding shorter rows may add before they get a tile of their own
MIN_QUERIES, MAX_QUERIES = 16, 512  # of one row, in a tile that needs a mask
MASK_SIZE = 2**22  # elements that the mask of such a tile has, unless the fewest queries need more


@dataclass(slots=True)
class Tile:
    """Queries that attend together: one token of each of several rows, or many of one row.

    tokens: the queries' indices in the step, a slice or int64.
    blocks: int64 [H_kv · rows · n], blocks to gather. keys: how many of the gathered keys count.
    mask: float32 [H_kv · rows, 1, 1, keys], added to scores; only where rows differ in length.
    ahead: of queries of one row, how many keys stand before the first one's own; None if the
        queries are of several rows.
    """

    tokens: slice | Tensor
    rows: int
    blocks: Tensor
    keys: int
    mask: Tensor | None = None
    ahead: int | None = None


@dataclass(slots=True)
class Plan:
    """One step of one group. write: int64 [H_kv · T], rows of the cache that take the tokens."""

    write: Tensor
    tiles: list[Tile]


class PagedAttention(Attention):
    """Grouped-query attention with window and soft cap, for any mix of chunks and decodes.

    The cache is [layer, k or v, H_kv, block, position in block, D]. Fresh blocks are zeroed, so
    what is masked is finite, and blocks that a row does not own are never read for it.
    """

    def __init__(
        self,
        group: KVGroup,
        specs: Sequence[AttentionSpec],
        ops: Ops,
        device: torch.device,
        config: ExecutorConfig,
    ) -> None:
        self.group = group
        self.specs = specs
        self.ops = ops
        self.device = device
        self.dtype = torch_dtype(config.kv_dtype)

    def allocate(self, num_blocks: int) -> None:
        spec = self.specs[0]
        self.num_blocks = num_blocks
        shape = (len(self.specs), 2, spec.num_kv_heads, num_blocks)
        self.cache = torch.empty(
            (*shape, self.group.block_size, spec.head_dim), dtype=self.dtype, device=self.device
        )

    def plan(self, batch: AttentionBatch) -> Plan:
        for blocks in batch.fresh_blocks:
            self.cache.index_fill_(3, blocks, 0)
        heads = torch.arange(self.specs[0].num_kv_heads, device=self.device)[:, None]
        slots = heads * (self.num_blocks * self.group.block_size) + batch.slot_mapping
        return Plan(slots.flatten(), self._tiles(batch))

    def _tiles(self, batch: AttentionBatch) -> list[Tile]:
        lengths = np.diff(batch.host_query_start)
        tiles = [self._decode_tile(batch, rows) for rows in self._alike(batch, lengths)]
        for row in np.flatnonzero(lengths > 1):
            tiles.extend(self._prefill_tiles(batch, int(row)))
        return tiles

    def _alike(self, batch: AttentionBatch, lengths: Int32) -> Iterator[NDArray[np.int64]]:
        """Rows with one query, in tiles of like numbers of keys and bounded size."""
        rows = np.flatnonzero(lengths == 1)
        keys = batch.host_context_len[rows]
        if self.group.window is not None:
            keys = np.minimum(keys, self.group.window)
        order = np.argsort(-keys, kind="stable")
        rows, keys = rows[order], keys[order]
        while len(rows):
            fits = max(1, min(len(rows), TILE_KEYS // int(keys[0])))
            alike = int(np.count_nonzero(keys[:fits] * 2 >= keys[0]))
            if int(keys[0]) * (fits - alike) > TILE_WASTE:
                fits = alike
            yield np.sort(rows[:fits])
            rows, keys = rows[fits:], keys[fits:]

    def _decode_tile(self, batch: AttentionBatch, rows: NDArray[np.int64]) -> Tile:
        """Each row's last query, over its own first..context blocks; shorter rows are masked."""
        size = self.group.block_size
        context = batch.host_context_len[rows].astype(np.int64)
        first = np.zeros_like(context)
        if self.group.window is not None:
            first = np.maximum(context - self.group.window, 0)
        start, stop = first // size, -(-context // size)
        columns = start[:, None] + np.arange((stop - start).max())
        # beyond its end a row reads its own last block again: finite, and masked
        columns = np.minimum(columns, stop[:, None] - 1)
        index = torch.from_numpy(rows).to(self.device)
        columns_there = torch.from_numpy(columns).to(self.device)
        blocks = self._gathered(batch.block_table[index].long().gather(1, columns_there))
        keys = columns.shape[1] * size
        positions = start[:, None] * size + np.arange(keys)
        seen = (positions >= first[:, None]) & (positions < context[:, None])
        mask = None
        if not seen.all():
            hidden = np.where(seen, np.float32(0), np.float32(-np.inf))
            mask = torch.from_numpy(hidden).to(self.device)[:, None, None]
            mask = mask.repeat(self.specs[0].num_kv_heads, 1, 1, 1)
        everything = len(rows) == batch.host_query_start[-1]
        tokens = slice(len(rows)) if everything else batch.query_start[index].long()
        return Tile(tokens, len(rows), blocks, keys, mask)

    def _prefill_tiles(self, batch: AttentionBatch, row: int) -> Iterator[Tile]:
        """The row's queries, in tiles over the keys that they see; one tile needs no mask."""
        begin, end = (int(i) for i in batch.host_query_start[row : row + 2])
        context = int(batch.host_context_len[row])
        whole = context == end - begin and not self._hides(context)
        count = end - begin if whole else max(MIN_QUERIES, min(MAX_QUERIES, MASK_SIZE // context))
        size, window = self.group.block_size, self.group.window
        for at in range(begin, end, count):
            tokens = slice(at, min(at + count, end))
            position = context - end + at
            seen = position + tokens.stop - at
            first = 0 if window is None else max(0, position + 1 - window) // size
            blocks = batch.block_table[row, first : -(-seen // size)].long()
            ahead = position - first * size
            yield Tile(tokens, 1, self._gathered(blocks), seen - first * size, ahead=ahead)

    def _hides(self, keys: int) -> bool:
        return self.group.window is not None and keys > self.group.window

    def _triangle(self, ahead: int, keys: int, queries: int) -> Tensor | None:
        """float32 [queries, keys] that hides the future and what left the window.

        None if it only hides the future of a chunk that starts with its keys: plainly causal.
        Made for each layer, since all of a long chunk's together could be large.
        """
        if ahead == 0 and not self._hides(keys):
            return None
        at = torch.arange(ahead, ahead + queries, device=self.device)[:, None]
        distance = at - torch.arange(keys, device=self.device)
        hidden = distance < 0
        if self.group.window is not None:
            hidden |= distance >= self.group.window
        mask = torch.zeros(hidden.shape, device=self.device)
        return mask.masked_fill_(hidden, -torch.inf)

    def _gathered(self, blocks: Tensor) -> Tensor:
        """blocks [rows, n] → the same of every head, as rows of [H_kv · blocks, …]."""
        heads = torch.arange(self.specs[0].num_kv_heads, device=self.device)[:, None]
        return (heads * self.num_blocks + blocks.flatten()).flatten()

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, plan: object) -> Tensor:
        assert isinstance(plan, Plan)
        assert v is not None
        keys, values = self.cache[layer]
        self.ops.kv_write(keys.view(-1, keys.shape[-1]), plan.write, k)
        self.ops.kv_write(values.view(-1, values.shape[-1]), plan.write, v)
        out = torch.empty_like(q)
        for tile in plan.tiles:
            attended = self._attend(layer, q[tile.tokens], keys, values, tile)
            out[tile.tokens] = attended.to(out.dtype)
        return out

    def _attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, tile: Tile) -> Tensor:
        """q [rows · M, H, D] → float32 of the same shape."""
        spec = self.specs[layer]
        kv, dim = spec.num_kv_heads, spec.head_dim
        shared = spec.num_heads // kv
        k, v = (
            cache.view(kv * self.num_blocks, -1)
            .index_select(0, tile.blocks)
            .view(kv * tile.rows, 1, -1, dim)[:, :, : tile.keys]
            for cache in (keys, values)
        )
        q = q.view(-1, kv, shared, dim)
        if tile.ahead is None:
            # heads that share keys become the queries of one product
            folded = q.transpose(0, 1).reshape(-1, 1, shared, dim)
            out = self.ops.attention(folded, k, v, spec.scale, spec.softcap, tile.mask, False)
            return out.view(kv, -1, shared, dim).transpose(0, 1).flatten(1, 2)
        mask = self._triangle(tile.ahead, tile.keys, len(q))
        out = self.ops.attention(
            q.permute(1, 2, 0, 3), k, v, spec.scale, spec.softcap, mask, mask is None
        )
        return out.permute(2, 0, 1, 3).flatten(1, 2)

    def copy_blocks(self, src: Int32, dst: Int32, direction: CopyDirection) -> None:
        if direction is not CopyDirection.DEVICE_TO_DEVICE:
            raise UnsupportedModel("the default attention keeps no blocks on the host")
        source = torch.from_numpy(src.astype(np.int64)).to(self.device)
        target = torch.from_numpy(dst.astype(np.int64)).to(self.device)
        self.cache.index_copy_(3, target, self.cache.index_select(3, source))
