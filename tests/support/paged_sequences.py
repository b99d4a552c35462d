"""Sequences whose attention is run step by step, in any cut, over any cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infercore.backend import Attention, AttentionBatch
from infercore.executor import ExecutorConfig, GroupKind, KVGroup
from infercore.layers.attention import PagedAttention
from infercore.layers.ops import Ops
from infercore.model_spec import AttentionSpec, LinearSpec, Shard
from stepper import executor_config

SCALES = (0.7, 1.8)  # of the two layers, over the root of the dimension

Step = Sequence[tuple[int, int]]
"""(sequence, new tokens) of each row."""


@dataclass(frozen=True)
class Shape:
    """Two layers of attention and their cache. dtype: of q, k and v."""

    heads: int = 6
    kv_heads: int = 2
    dim: int = 16
    window: int | None = None
    softcap: float | None = None
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    kv_dtype: str = "float32"

    @property
    def group(self) -> KVGroup:
        kind = GroupKind.FULL if self.window is None else GroupKind.WINDOW
        return KVGroup("g", kind, tuple(range(len(SCALES))), self.block_size, 0, self.window)

    @property
    def specs(self) -> list[AttentionSpec]:
        linear = LinearSpec("unused", 1, 1, Shard.COLUMN)
        return [
            AttentionSpec(
                self.heads,
                self.kv_heads,
                self.dim,
                scale / self.dim**0.5,
                (linear,),
                linear,
                softcap=self.softcap,
            )
            for scale in SCALES
        ]

    @property
    def config(self) -> ExecutorConfig:
        return executor_config(block_size=self.block_size, kv_dtype=self.kv_dtype)


def default(shape: Shape) -> PagedAttention:
    """Core's attention."""
    return PagedAttention(shape.group, shape.specs, Ops(), torch.device("cpu"), shape.config)


class Run:
    """One cache with its sequences; a token's q, k and v depend on its sequence and place only.

    outputs: [layers, tokens so far, H, D] of each sequence.
    """

    def __init__(
        self, make: Callable[[Shape], Attention], shape: Shape, *, blocks: int = 128, seed: int = 0
    ) -> None:
        self.shape = shape
        self.cache = make(shape)
        self.cache.allocate(blocks)
        self.free = (1 + np.random.default_rng(seed).permutation(blocks - 1)).tolist()
        self.blocks: dict[int, list[int]] = {}
        self.outputs: dict[int, Tensor] = {}

    def step(self, rows: Step) -> None:
        plan = self.cache.plan(self._batch(rows))
        drawn = [self._tokens(name, self._done(name), count) for name, count in rows]
        q, k, v = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        made = [self.cache.forward(layer, q, k, v, plan) for layer in range(len(SCALES))]
        counts = [count for _, count in rows]
        for (name, _), out in zip(
            rows, torch.stack(made).split_with_sizes(counts, dim=1), strict=True
        ):
            before = [self.outputs[name]] if name in self.outputs else []
            self.outputs[name] = torch.cat([*before, out], dim=1)

    def _done(self, name: int) -> int:
        return self.outputs[name].shape[1] if name in self.outputs else 0

    def _tokens(self, name: int, at: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as views into what one product would have made."""
        shape = self.shape
        random = torch.Generator().manual_seed(name)
        total = shape.heads + 2 * shape.kv_heads
        drawn = torch.randn((at + count) * total, shape.dim, generator=random)[at * total :]
        qkv = drawn.view(count, total, shape.dim).to(shape.dtype)
        q, k, v = qkv.split_with_sizes((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        return q, k, v

    def _batch(self, rows: Step) -> AttentionBatch:
        """Takes blocks, and gives 0 for those that left the window."""
        size, window = self.shape.block_size, self.shape.window
        slots, contexts, fresh, tables = [], [], [], []
        for name, count in rows:
            done, blocks = self._done(name), self.blocks.setdefault(name, [])
            while len(blocks) * size < done + count:
                blocks.append(self.free.pop())
                fresh.append(blocks[-1])
            slots += [blocks[p // size] * size + p % size for p in range(done, done + count)]
            contexts.append(done + count)
            left = 0 if window is None else max(0, done + 1 - window) // size
            tables.append([0] * left + blocks[left:])
        return batch([count for _, count in rows], contexts, tables, slots, fresh)


def batch(
    counts: Sequence[int],
    contexts: Sequence[int],
    tables: Sequence[Sequence[int]],
    slots: Sequence[int],
    fresh: Sequence[int] = (),
) -> AttentionBatch:
    """One step's rows; tables may differ in length."""
    width = max(map(len, tables))
    table = np.array([[*t, *[0] * (width - len(t))] for t in tables], np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    context = np.array(contexts, np.int32)
    return AttentionBatch(
        query_start=torch.from_numpy(starts),
        context_len=torch.from_numpy(context),
        block_table=torch.from_numpy(table),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        host_query_start=starts,
        host_context_len=context,
        fresh_blocks=torch.tensor(fresh, dtype=torch.int64),
    )
