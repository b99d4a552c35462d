"""Paged attention against the textbook formula in float64, over ragged batches."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from infercore.backend import AttentionBatch
from infercore.errors import UnsupportedModel
from infercore.executor import CopyDirection, GroupKind, KVGroup
from infercore.layers import attention
from infercore.layers.attention import PagedAttention
from infercore.layers.ops import Ops
from infercore.model_spec import AttentionSpec, LinearSpec, Shard
from stepper import executor_config

Float64 = NDArray[np.float64]
DIM, LAYERS, BLOCKS = 8, 2, 96
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def specs(heads: int, kv_heads: int, softcap: float | None) -> list[AttentionSpec]:
    """Two layers that differ in scale."""
    linear = LinearSpec("unused", 1, 1, Shard.COLUMN)
    return [
        AttentionSpec(heads, kv_heads, DIM, scale, (linear,), linear, softcap=softcap)
        for scale in (0.35, 0.9)
    ]


def reference(
    q: Float64, k: Float64, v: Float64, spec: AttentionSpec, window: int | None
) -> Float64:
    """The last len(q) positions attend: q [M, H, D]; k, v [S, H_kv, D] → [M, H, D]."""
    shared = spec.num_heads // spec.num_kv_heads
    k, v = k.repeat(shared, axis=1), v.repeat(shared, axis=1)
    scores = np.einsum("mhd,shd->hms", q, k) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * np.tanh(scores / spec.softcap)
    distance = np.arange(len(k) - len(q), len(k))[:, None] - np.arange(len(k))
    seen = (distance >= 0) & (distance < (window or len(k)))
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.asarray(np.einsum("hms,shd->mhd", weights / weights.sum(-1, keepdims=True), v))


class Simulation:
    """Sequences that grow, beside the cache under test, which starts as NaN and stays so where
    nothing was written but in fresh blocks.
    """

    def __init__(
        self,
        *,
        heads: int = 6,
        kv_heads: int = 2,
        window: int | None = None,
        softcap: float | None = None,
        block_size: int = 16,
        seed: int = 0,
        **config: Any,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.window = window
        self.specs = specs(heads, kv_heads, softcap)
        kind = GroupKind.FULL if window is None else GroupKind.WINDOW
        self.group = KVGroup("g", kind, tuple(range(LAYERS)), block_size, 0, window)
        options = executor_config(block_size=block_size, **config)
        self.paged = PagedAttention(self.group, self.specs, Ops(), CPU, options)
        self.paged.allocate(BLOCKS)
        self.paged.cache.fill_(torch.nan)
        self.free = (1 + self.rng.permutation(BLOCKS - 1)).tolist()
        self.blocks: dict[int, list[int]] = {}
        self.history: dict[int, list[tuple[Float64, Float64]]] = {}

    def drawn(self, count: int, heads: int) -> Float64:
        return (
            self.rng.standard_normal((LAYERS, count, heads, DIM)).astype(np.float32).astype(float)
        )

    def batch(self, rows: Sequence[tuple[int, int]]) -> AttentionBatch:
        """rows: (sequence, new tokens). Takes blocks and forgets those that left the window."""
        size = self.group.block_size
        slots, contexts, fresh, tables = [], [], [], []
        for name, count in rows:
            blocks = self.blocks.setdefault(name, [])
            done = self.history[name][0][0].shape[0] if name in self.history else 0
            while len(blocks) * size < done + count:
                blocks.append(self.free.pop())
                fresh.append(blocks[-1])
            slots += [blocks[p // size] * size + p % size for p in range(done, done + count)]
            contexts.append(done + count)
            left = 0 if self.window is None else max(0, done + 1 - self.window) // size
            tables.append([0] * left + blocks[left:])
        width = max(map(len, tables)) + int(self.rng.integers(0, 3))
        table = np.array([t + [0] * (width - len(t)) for t in tables], np.int32)
        starts = np.concatenate([[0], np.cumsum([count for _, count in rows])]).astype(np.int32)
        context = np.array(contexts, np.int32)
        return AttentionBatch(
            query_start=torch.from_numpy(starts),
            context_len=torch.from_numpy(context),
            block_table=torch.from_numpy(table),
            slot_mapping=torch.tensor(slots),
            host_query_start=starts,
            host_context_len=context,
            fresh_blocks=torch.tensor(fresh, dtype=torch.int64),
        )

    def step(self, rows: Sequence[tuple[int, int]], tolerance: float = 2e-6) -> None:
        plan = self.paged.plan(self.batch(rows))
        spec = self.specs[0]
        total = sum(count for _, count in rows)
        q = self.drawn(total, spec.num_heads)
        k, v = self.drawn(total, spec.num_kv_heads), self.drawn(total, spec.num_kv_heads)
        starts = np.cumsum([0, *(count for _, count in rows)])
        for (name, _), (at, to) in zip(rows, pairwise(starts), strict=True):
            new = [(k[layer, at:to], v[layer, at:to]) for layer in range(LAYERS)]
            old = self.history.get(name)
            self.history[name] = (
                new
                if old is None
                else [
                    (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))
                    for a, b in zip(old, new, strict=True)
                ]
            )
        for layer in range(LAYERS):
            here, keys_here, values_here = (torch.from_numpy(x[layer]).float() for x in (q, k, v))
            found = self.paged.forward(layer, here, keys_here, values_here, plan)
            assert found.shape == (total, spec.num_heads, DIM)
            for (name, _), (at, to) in zip(rows, pairwise(starts), strict=True):
                keys, values = self.history[name][layer]
                expected = reference(q[layer, at:to], keys, values, self.specs[layer], self.window)
                np.testing.assert_allclose(found[at:to].double(), expected, atol=tolerance)


MIXES: list[list[tuple[int, int]]] = [
    [(0, 1), (1, 40), (2, 17)],  # prefills of different sequences
    [(0, 1), (1, 1), (2, 16), (3, 1)],  # decodes around a chunk that has a past
    [(3, 33), (0, 1), (1, 1)],
    [(2, 1), (1, 1), (0, 1), (3, 1)],  # decodes only, of different lengths
    [(4, 120), (0, 2)],
    [(4, 1), (0, 1), (1, 1), (2, 1), (3, 1)],
    [(4, 30), (1, 1), (5, 1)],
]
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"heads": 4, "kv_heads": 4},
    "grouped": {},
    "one kv head": {"heads": 3, "kv_heads": 1},
    "soft cap": {"softcap": 1.5},
    "window": {"window": 24},
    "window of a block": {"window": 16},
    "window of 1": {"window": 1},
    "window beyond all": {"window": 500},
    "window and soft cap": {"window": 10, "softcap": 0.5, "heads": 4, "kv_heads": 4},
    "large blocks": {"block_size": 64, "window": 70},
}


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_ragged_batches_equal_the_reference(name: str) -> None:
    simulation = Simulation(**SHAPES[name])
    for rows in MIXES:
        simulation.step(rows)


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_small_tiles_change_nothing(
    monkeypatch: pytest.MonkeyPatch, seed: int, window: int | None
) -> None:
    """Limits so low that every batch takes many tiles, and every long row several masks."""
    monkeypatch.setattr(attention, "TILE_KEYS", 40)
    monkeypatch.setattr(attention, "TILE_WASTE", 20 * seed)
    monkeypatch.setattr(attention, "MASK_SIZE", 64)
    monkeypatch.setattr(attention, "MIN_QUERIES", 3 + seed)
    simulation = Simulation(window=window, seed=seed)
    for rows in MIXES:
        simulation.step(rows)


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("window", [None, 20])
@torch.inference_mode()
def test_any_chunk_size_equals_the_reference(chunk: int, window: int | None) -> None:
    simulation = Simulation(window=window, seed=chunk)
    for at in range(0, 100, chunk):
        simulation.step([(0, min(chunk, 100 - at))])


@pytest.mark.parametrize("seed", range(6))
@torch.inference_mode()
def test_random_traffic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    simulation = Simulation(
        window=[None, 5, 33][seed % 3], softcap=[None, 2.0][seed % 2], seed=seed
    )
    for _ in range(8):
        names = rng.permutation(7)[: rng.integers(1, 8)]
        simulation.step([(int(n), int(rng.choice([1, 1, 1, 2, 15, 30]))) for n in names])


@torch.inference_mode()
def test_the_cache_holds_its_own_dtype() -> None:
    simulation = Simulation(kv_dtype="bfloat16")
    assert simulation.paged.cache.dtype == torch.bfloat16
    for rows in MIXES:
        simulation.step(rows, tolerance=0.03)


@torch.inference_mode()
def test_copied_blocks_serve_another_sequence() -> None:
    simulation = Simulation()
    simulation.step([(0, 40)])
    copies = [simulation.free.pop() for _ in simulation.blocks[0]]
    src, dst = (np.array(blocks, np.int32) for blocks in (simulation.blocks[0], copies))
    simulation.paged.copy_blocks(src, dst, CopyDirection.DEVICE_TO_DEVICE)
    simulation.blocks[1], simulation.history[1] = copies, list(simulation.history[0])
    simulation.step([(1, 1), (0, 1)])
    for direction in (CopyDirection.DEVICE_TO_HOST, CopyDirection.HOST_TO_DEVICE):
        with pytest.raises(UnsupportedModel, match="host"):
            simulation.paged.copy_blocks(src, dst, direction)


@torch.inference_mode()
def test_padding_rows_are_ignored_and_harm_nobody() -> None:
    """A padded row has length 1 and writes to block 0, whatever stands there."""
    simulation = Simulation()
    simulation.step([(0, 20)])
    batch = simulation.batch([(0, 1)])
    padded = AttentionBatch(
        query_start=torch.tensor([0, 1, 2], dtype=torch.int32),
        context_len=torch.tensor([21, 1], dtype=torch.int32),
        block_table=torch.nn.functional.pad(batch.block_table, (0, 0, 0, 1)),
        slot_mapping=torch.nn.functional.pad(batch.slot_mapping, (0, 1)),
        host_query_start=np.array([0, 1, 2], np.int32),
        host_context_len=np.array([21, 1], np.int32),
        fresh_blocks=batch.fresh_blocks,
    )
    q, k, v = (torch.randn(2, heads, DIM) for heads in (6, 2, 2))
    q[1] = k[1] = v[1] = torch.nan
    found = simulation.paged.forward(0, q, k, v, simulation.paged.plan(padded))
    keys, values = simulation.history[0][0]
    keys, values = (
        np.concatenate([old, new[:1].double().numpy()]) for old, new in ((keys, k), (values, v))
    )
    expected = reference(q[:1].double().numpy(), keys, values, simulation.specs[0], None)
    np.testing.assert_allclose(found[:1].double(), expected, atol=2e-6)
