"""Sequences whose attention is computed step by step over a paged cache, and by definition.

Importing this module does not import torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from infercore.backend import AttentionBatch
from infercore.capabilities import Dimension
from infercore.executor import GroupKind, KVGroup
from infercore.model_spec import AttentionSpec, LinearSpec, Shard
from infercore_conformance.accuracy import Accuracy, error_bound
from infercore_conformance.device import Device, coarse, normal
from infercore_conformance.fixtures import Numerics

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.step import Float32, Int32

SCALES = (1.0, 0.6)  # of the group's layers, times 1 / sqrt(D): what mixes them up shows
BLOCKS = 160  # of the cache, block 0 included

Rows = Sequence[tuple[int, int]]
"""(sequence, new tokens) of each row of a step."""


@dataclass(frozen=True)
class Shape:
    """The attention of a KV group. window, softcap: None = without. magnitude: of q."""

    heads: int = 6
    kv_heads: int = 2
    dim: int = 16
    window: int | None = None
    softcap: float | None = None
    magnitude: float = 1.0

    def group(self, block_size: int, itemsize: int) -> KVGroup:
        nbytes = 2 * len(SCALES) * self.kv_heads * self.dim * itemsize * block_size
        kind = GroupKind.FULL if self.window is None else GroupKind.WINDOW
        layers = tuple(range(len(SCALES)))
        return KVGroup("conformance", kind, layers, block_size, nbytes, self.window)

    def specs(self) -> list[AttentionSpec]:
        unused = LinearSpec("unused", 1, 1, Shard.COLUMN)
        return [
            AttentionSpec(
                self.heads,
                self.kv_heads,
                self.dim,
                factor * self.dim**-0.5,
                (unused,),
                unused,
                window=self.window,
                softcap=self.softcap,
            )
            for factor in SCALES
        ]

    @lru_cache(maxsize=128)  # noqa: B019 - of frozen values, a few for each check
    def drawn(self, sequence: int, tokens: int, *, wide: bool) -> "Float32":
        """q, k and v of a sequence's first tokens, side by side: [tokens, H + 2 H_kv, D].

        wide: they may have float32's digits; else every 16-bit dtype holds them.
        """
        width = self.heads + 2 * self.kv_heads
        made = normal(100 + sequence, tokens * width * self.dim)
        qkv = (made if wide else coarse(made)).reshape(tokens, width, self.dim)
        qkv[:, : self.heads] *= np.float32(self.magnitude)
        return qkv

    @lru_cache(maxsize=32)  # noqa: B019
    def expected(self, sequence: int, tokens: int, *, wide: bool) -> "Tensor":
        """By definition: [layers, tokens, H, D], in float32 on the host."""
        import torch

        from infercore.layers.ops import Ops

        qkv = torch.from_numpy(self.drawn(sequence, tokens, wide=wide))
        q, k, v = qkv.split_with_sizes((self.heads, self.kv_heads, self.kv_heads), 1)
        q = q.reshape(tokens, self.kv_heads, -1, self.dim).permute(1, 2, 0, 3)
        k, v = (x.transpose(0, 1)[:, None] for x in (k, v))
        distance = np.arange(tokens)[:, None] - np.arange(tokens)
        seen = (distance >= 0) & (distance < (self.window or tokens))
        mask = torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf)))
        made = [
            Ops().attention(q, k, v, spec.scale, spec.softcap, mask, False) for spec in self.specs()
        ]
        return torch.stack(made).permute(0, 3, 1, 2, 4).flatten(2, 3)


class Sequences:
    """A cache of a device's own, and the sequences in it.

    order: the free blocks, the next one last; None = a permutation by `seed`.
    outputs: [layers, tokens so far, H, D] of each sequence, as computed.
    """

    def __init__(
        self, device: Device, shape: Shape, *, seed: int = 0, order: Sequence[int] | None = None
    ) -> None:
        from infercore.layers.common import torch_dtype

        self.device = device
        self.shape = shape
        config = device.backend.config
        self.size = config.block_size
        # a cache that rounds keys makes errors that grow with scores, and are nobody's fault
        self.wide = device.computes_float32 and config.kv_dtype == "float32"
        group = shape.group(self.size, torch_dtype(config.kv_dtype).itemsize)
        self.cache = device.backend.attention(group, shape.specs())
        self.cache.allocate(BLOCKS)
        drawn = 1 + np.random.default_rng(seed).permutation(BLOCKS - 1)
        self.free: list[int] = drawn.tolist() if order is None else list(order)
        self.blocks: dict[int, list[int]] = {}
        self.outputs: dict[int, list[Tensor]] = {}
        self.lengths: dict[int, int] = {}
        self._drawn_as: dict[int, int] = {}  # of sequences that began as another one

    def step(self, rows: Rows, *, spare_rows: int = 0, spoilt: int | None = None) -> None:
        """Compute one step of the rows.

        spare_rows: more rows of padding than the device needs. spoilt: the sequence whose q, k and
        v are no numbers, as those of a row whose model overflowed.
        """
        import torch

        batch = self._batch(rows, spare_rows)
        plan = self.cache.plan(batch)
        qkv = np.full(
            (len(batch.slot_mapping), self._width, self.shape.dim), np.nan, np.float32
        )  # what padding holds is no number in any layer but the first
        own = [self._new(n, count) * (np.nan if n == spoilt else 1) for n, count in rows]
        qkv[: sum(map(len, own))] = np.concatenate(own)
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        made = self.device.activations(qkv)
        q, k, v = made.split_with_sizes((heads, kv_heads, kv_heads), 1)
        outs = [self.cache.forward(layer, q, k, v, plan) for layer in range(len(SCALES))]
        assert all(out.dtype == q.dtype and out.shape == q.shape for out in outs), (
            f"attention is {outs[0].dtype}{list(outs[0].shape)}, and q {q.dtype}{list(q.shape)}"
        )
        self._keep(rows, torch.stack([out.float().cpu() for out in outs], dim=1))

    def fork(self, name: int, other: int) -> None:
        """`other` begins with what `name` has, in the same blocks, and goes on in its own.

        `name` is at the end of a block.
        """
        self.blocks[other] = list(self.blocks[name])
        self.outputs[other] = list(self.outputs[name])
        self.lengths[other] = self.lengths[name]
        self._drawn_as[other] = name

    def release(self, name: int) -> None:
        """Its blocks are the next ones that are handed out."""
        self.free += self.blocks.pop(name)
        del self.outputs[name], self.lengths[name]

    def output(self, name: int) -> "Tensor":
        """[layers, tokens, H, D] of a sequence, from all steps."""
        import torch

        return torch.cat(self.outputs[name]).transpose(0, 1)

    def check(self, numerics: Numerics, case: str = "", *, bound: float = 0.0) -> None:
        """Hold every sequence against the definition. bound: where it is above the dtypes' own."""
        dtype, kv_dtype = self.device.dtype, self.device.backend.config.kv_dtype
        bound = max(bound, error_bound(dtype, kv_dtype))
        accuracy = Accuracy(numerics, dtype, bound)
        for name, length in self.lengths.items():
            drawn = self._drawn_as.get(name, name)
            expected = self.shape.expected(drawn, length, wide=self.wide)
            what = f"sequence {name} of {length} tokens, blocks of {self.size} {case}"
            accuracy.check(self.output(name), expected, what)

    @cached_property
    def _width(self) -> int:
        return self.shape.heads + 2 * self.shape.kv_heads

    def _new(self, name: int, count: int) -> "Float32":
        length = self.lengths[name]
        drawn = self._drawn_as.get(name, name)
        return self.shape.drawn(drawn, length, wide=self.wide)[length - count :]

    def _keep(self, rows: Rows, made: "Tensor") -> None:
        at = 0
        for name, count in rows:
            self.outputs.setdefault(name, []).append(made[at : at + count])
            at += count

    def _batch(self, rows: Rows, spare_rows: int) -> AttentionBatch:
        """The step's arrays, padded to what the device may be given, as core pads them."""
        slots: list[int] = []
        fresh: list[int] = []
        tables: list[list[int]] = []
        for name, count in rows:
            done = self.lengths.get(name, 0)
            self.lengths[name] = done + count
            blocks = self.blocks.setdefault(name, [])
            while len(blocks) * self.size < done + count:
                blocks.append(self.free.pop())
                fresh.append(blocks[-1])
            positions = range(done, done + count)
            slots += [blocks[p // self.size] * self.size + p % self.size for p in positions]
            left = 0 if self.shape.window is None else max(0, done + 1 - self.shape.window)
            gone = left // self.size  # blocks that left the window may be another's by now
            tables.append([0] * gone + blocks[gone:])
        counts = [count for _, count in rows]
        contexts = [self.lengths[name] for name, _ in rows]
        return self._padded(counts, contexts, tables, slots, fresh, spare_rows)

    def _padded(
        self,
        counts: list[int],
        contexts: list[int],
        tables: list[list[int]],
        slots: list[int],
        fresh: list[int],
        spare_rows: int,
    ) -> AttentionBatch:
        """Behind the rows come rows of one token on block 0, then tokens of no row."""
        legal = self.device.legal
        num_rows = legal(Dimension.ROWS, len(counts) + spare_rows)
        extra = num_rows - len(counts)
        num_tokens = legal(Dimension.TOKENS, len(slots) + extra)
        width = legal(Dimension.BLOCKS, max(map(len, tables)))
        table = np.zeros((num_rows, width), np.int32)
        for row, blocks in enumerate(tables):
            table[row, : len(blocks)] = blocks
        starts = np.concatenate([[0], np.cumsum([*counts, *[1] * extra])]).astype(np.int32)
        context = np.array([*contexts, *[1] * extra], np.int32)
        mapping = np.array([*slots, *[0] * (num_tokens - len(slots))], np.int64)
        return self._on_device(starts, context, table, mapping, np.array(fresh, np.int64))

    def _on_device(
        self,
        starts: "Int32",
        context: "Int32",
        table: "Int32",
        mapping: "np.ndarray[tuple[int], np.dtype[np.int64]]",
        fresh: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    ) -> AttentionBatch:
        put = self.device.put
        return AttentionBatch(
            query_start=put(starts),
            context_len=put(context),
            block_table=put(table),
            slot_mapping=put(mapping),
            host_query_start=starts,
            host_context_len=context,
            fresh_blocks=put(fresh),
        )
