"""Attention over a cache that is NaN wherever nothing was written."""

from collections.abc import Sequence
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
from infercore_sim.memory import DeviceMemory


@dataclass(slots=True)
class Tile:
    """Rows with as many queries each, M.

    tokens: int64 [R · M], the queries' indices in the step. blocks: int64 [R, n], what holds the
    keys of the rows. mask: float32 [R · H_kv, 1, M, S], added to scores, S being the positions in
    n blocks. unread: bool [R, S, 1, 1], those that no query of the row reads.
    """

    tokens: Tensor
    blocks: Tensor
    mask: Tensor
    unread: Tensor


@dataclass(slots=True)
class Plan:
    """tokens, slots: int64, which of the step's tokens are kept, and where; padding's are not."""

    tokens: Tensor
    slots: Tensor
    tiles: list[Tile]


class SimAttention(Attention):
    """Grouped-query attention with window and soft cap that uses a row's own keys and no other.

    The cache is [layer, k or v, block, position in block, H_kv, D]. All of it is NaN when it is
    allocated, fresh blocks become NaN again, and block 0 always is: what padding writes to it is
    NaN. So is the output of tokens that belong to no row, and of rows that read block 0.
    """

    def __init__(
        self,
        group: KVGroup,
        specs: Sequence[AttentionSpec],
        ops: Ops,
        config: ExecutorConfig,
        memory: DeviceMemory,
    ) -> None:
        self.group = group
        self.specs = specs
        self.ops = ops
        self.dtype = torch_dtype(config.kv_dtype)
        self.memory = memory
        self.forgets = False  # everything, at the next step

    def allocate(self, num_blocks: int) -> None:
        spec = self.specs[0]
        self.cache = torch.zeros(0)  # an earlier one is freed first
        self.memory.require(num_blocks * self.group.bytes_per_block)
        shape = (len(self.specs), 2, num_blocks, self.group.block_size)
        self.cache = torch.full(
            (*shape, spec.num_kv_heads, spec.head_dim), torch.nan, dtype=self.dtype
        )

    def plan(self, batch: AttentionBatch) -> Plan:
        if self.forgets:
            self.cache.fill_(torch.nan)
            self.forgets = False
        self.cache.index_fill_(2, batch.fresh_blocks, torch.nan)
        tokens = (batch.slot_mapping >= self.group.block_size).nonzero()[:, 0]
        lengths = np.diff(batch.host_query_start)
        # rows of one token together, longer ones each alone
        alike = [np.flatnonzero(lengths == 1), *np.flatnonzero(lengths > 1)[:, None]]
        tiles = [self._tile(batch, rows) for rows in alike if len(rows)]
        return Plan(tokens, batch.slot_mapping[tokens], tiles)

    def _tile(self, batch: AttentionBatch, rows: NDArray[np.int64]) -> Tile:
        size, window = self.group.block_size, self.group.window
        begins = batch.host_query_start[rows].astype(np.int64)
        count = np.arange(batch.host_query_start[rows[0] + 1] - begins[0])
        context = batch.host_context_len[rows].astype(np.int64)[:, None]
        queries = context - len(count) + count
        hidden_before = 0 if window is None else np.maximum(queries[:, :1] + 1 - window, 0)
        start, stop = hidden_before // size + np.zeros_like(context), -(-context // size)
        columns = start + np.arange((stop - start).max())
        keys = start * size + np.arange(columns.shape[1] * size)
        distance = queries[:, :, None] - keys[:, None]
        seen = (distance >= 0) & (distance < (window or np.inf))
        index = torch.from_numpy(np.where(columns < stop, columns, 0))
        blocks = batch.block_table[torch.from_numpy(rows)].long().gather(1, index)
        hidden = torch.from_numpy(~seen).repeat_interleave(self.specs[0].num_kv_heads, 0)
        return Tile(
            tokens=torch.from_numpy((begins[:, None] + count).ravel()),
            blocks=blocks,
            mask=torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None],
            unread=torch.from_numpy(~seen.any(1))[:, :, None, None],
        )

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, plan: object) -> Tensor:
        assert isinstance(plan, Plan)
        assert v is not None
        for cache, new in zip(self.cache[layer], (k, v), strict=True):
            cache.flatten(0, 1).index_copy_(0, plan.slots, new[plan.tokens].to(self.dtype))
        out = torch.full_like(q, torch.nan)
        for tile in plan.tiles:
            out[tile.tokens] = self._attend(layer, q[tile.tokens], tile)
        return out

    def _attend(self, layer: int, q: Tensor, tile: Tile) -> Tensor:
        """q [R · M, H, D] → the same shape."""
        spec, rows = self.specs[layer], len(tile.blocks)
        k, v = (
            cache[tile.blocks].flatten(1, 2).masked_fill(tile.unread, 0).transpose(1, 2)
            for cache in self.cache[layer]
        )
        shared = spec.num_heads // spec.num_kv_heads
        grouped = q.reshape(rows, -1, spec.num_kv_heads, shared, spec.head_dim)
        folded = grouped.permute(0, 2, 3, 1, 4)
        out = self.ops.attention(
            folded.flatten(0, 1),
            k.flatten(0, 1)[:, None],
            v.flatten(0, 1)[:, None],
            spec.scale,
            spec.softcap,
            tile.mask,
            False,
        )
        return out.reshape(folded.shape).permute(0, 3, 1, 2, 4).reshape(q.shape).to(q.dtype)

    def copy_blocks(self, src: Int32, dst: Int32, direction: CopyDirection) -> None:
        if direction is not CopyDirection.DEVICE_TO_DEVICE:
            raise UnsupportedModel("the simulated device keeps no blocks on the host")
        source, target = (torch.from_numpy(blocks.astype(np.int64)) for blocks in (src, dst))
        self.cache.index_copy_(2, target, self.cache.index_select(2, source))
