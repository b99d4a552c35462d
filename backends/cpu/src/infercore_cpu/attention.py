"""Paged attention in native code, over pages that are stored as its kernels read them."""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infercore.backend import Attention, AttentionBatch
from infercore.errors import UnsupportedModel
from infercore.executor import CopyDirection, ExecutorConfig, GroupKind, KVGroup
from infercore.layers.common import torch_dtype
from infercore.model_spec import AttentionSpec
from infercore.step import Int32

# as attention.h has them
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PANEL = 16  # dims, and positions, that pages are made of
MAX_DIM = 256
PARTITION = 512  # positions that one thread sums for a single token, where a token's are split
TILE_ROWS = 48  # queries, times the heads that share keys, that go over the keys together
TILE_FIELDS, MERGE_FIELDS = 5, 3
BAD_PLANS = {
    1: "query_start does not count the step's tokens upwards from 0",
    2: "context_len is less than a row's tokens, or more than its blocks hold",
    3: "block_table names a block that was not allocated",
    4: "slot_mapping names a slot of a block that was not allocated",
}


class Args(ctypes.Structure):
    """AttentionArgs of attention.h, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out", "keys", "values", "workspace")),
        *((name, c_void_p) for name in ("slots", "query_start", "context_len", "block_table")),
        *((name, c_void_p) for name in ("tiles", "merges")),
        *((name, c_int32) for name in ("tokens", "num_tiles", "num_merges", "num_partials")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "v_stride", "num_blocks")),
        *((name, c_int32) for name in ("table_width", "block_size", "heads", "kv_heads")),
        *((name, c_int32) for name in ("head_dim", "window", "dtype", "cache_dtype")),
        ("scale", c_float),
        ("softcap", c_float),
    )


@dataclass(slots=True)
class Plan:
    """One step of one group: the arguments that its layers share, and what they point to.

    args.keys: the first layer's; those of the layers follow each other, each before its values.
    """

    args: Args
    held: tuple[object, ...]


def supports(group: KVGroup, specs: Sequence[AttentionSpec]) -> bool:
    """Whether the native kernels compute these layers."""
    return (
        group.kind in (GroupKind.FULL, GroupKind.WINDOW)
        and group.block_size % PANEL == 0
        and all(spec.head_dim <= MAX_DIM for spec in specs)
    )


class NativeAttention(Attention):
    """Grouped-query attention with window and soft cap, for any mix of chunks and decodes.

    A token's result has the same bits whatever stands beside it in the step, however its sequence
    was cut into chunks or blocks, and on any number of threads. The cache, in the dtype of
    `config.kv_dtype`, is [layer, k or v, H_kv, block, page]; a head's size is filled up to 16.
    Sums are float32. Padding is not written, so block 0 stays zero.

    library: the native kernels.
    """

    def __init__(
        self,
        group: KVGroup,
        specs: Sequence[AttentionSpec],
        config: ExecutorConfig,
        library: ctypes.CDLL,
    ) -> None:
        self.group = group
        self.specs = specs
        self.dtype = torch_dtype(config.kv_dtype)
        self._run = library.infercore_attention
        self._plan = library.infercore_plan_attention
        self._plan.argtypes = (c_void_p, c_int, c_int, c_void_p, c_void_p)
        self._run.restype, self._plan.restype = None, c_int
        self._heads = max(spec.num_heads for spec in specs)
        self._padded = -(-specs[0].head_dim // PANEL) * PANEL
        self._together = max(1, TILE_ROWS * specs[0].num_kv_heads // self._heads)
        self._workspace = torch.empty(0)

    def allocate(self, num_blocks: int) -> None:
        # untouched pages of zeros take no memory
        shape = (len(self.specs), 2, self.specs[0].num_kv_heads, num_blocks)
        self.cache = torch.zeros((*shape, self.group.block_size * self._padded), dtype=self.dtype)
        self._shared = Args(
            keys=self.cache.data_ptr(),
            num_blocks=num_blocks,
            block_size=self.group.block_size,
            kv_heads=self.specs[0].num_kv_heads,
            head_dim=self.specs[0].head_dim,
            window=self.group.window or 0,
            cache_dtype=DTYPES[self.dtype],
        )

    def plan(self, batch: AttentionBatch) -> Plan:
        """Raises ValueError for a row or a block that is none, which no kernel looks at again."""
        tokens, rows = len(batch.slot_mapping), len(batch.host_context_len)
        held = (
            batch.slot_mapping.contiguous(),
            batch.query_start.contiguous(),
            batch.context_len.contiguous(),
            batch.block_table.contiguous(),
        )
        width = held[3].shape[1]
        most = tokens + rows * (width * self.group.block_size // PARTITION + 1)
        planned = torch.empty(most * TILE_FIELDS + tokens * MERGE_FIELDS, dtype=torch.int32)
        tiles = planned.data_ptr()
        args = Args.from_buffer_copy(self._shared)
        args.slots, args.query_start, args.context_len, args.block_table = (
            tensor.data_ptr() for tensor in held
        )
        args.tokens, args.table_width = tokens, width
        merges = tiles + most * TILE_FIELDS * planned.itemsize
        bad = self._plan(ctypes.byref(args), rows, self._together, tiles, merges)
        if bad:
            raise ValueError(f"KV group {self.group.name}: {BAD_PLANS[bad]}")
        args.workspace = self._space(args.num_partials)
        return Plan(args, (held, planned))

    def _space(self, partials: int) -> int:
        floats = partials * self._heads * (self._padded + 2)
        if floats > len(self._workspace):
            self._workspace = torch.empty(floats)
        return self._workspace.data_ptr()

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, plan: object) -> Tensor:
        assert isinstance(plan, Plan)
        assert v is not None
        spec, args = self.specs[layer], Args.from_buffer_copy(plan.args)
        q, k, v = by_token(q), by_token(k), by_token(v)
        out = torch.empty(q.shape, dtype=q.dtype)
        args.q, args.k, args.v, args.out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
        args.q_stride, args.k_stride, args.v_stride = q.stride(0), k.stride(0), v.stride(0)
        keys, values = self.cache[layer]
        args.keys, args.values = keys.data_ptr(), values.data_ptr()
        args.heads, args.dtype = spec.num_heads, DTYPES[q.dtype]
        args.scale, args.softcap = spec.scale, spec.softcap or 0.0
        self._run(ctypes.byref(args))
        return out

    def copy_blocks(self, src: Int32, dst: Int32, direction: CopyDirection) -> None:
        if direction is not CopyDirection.DEVICE_TO_DEVICE:
            raise UnsupportedModel("the CPU's blocks are on the host already")
        source, target = (torch.from_numpy(blocks.astype(np.int64)) for blocks in (src, dst))
        self.cache.index_copy_(3, target, self.cache.index_select(3, source))


def by_token(x: Tensor) -> Tensor:
    """x [T, N] or [T, H, D], each token in one piece, with gaps between tokens or without."""
    inside = (x.shape[2], 1) if x.dim() == 3 else (1,)
    return x if x.stride()[1:] == inside else x.contiguous()
