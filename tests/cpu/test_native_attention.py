"""Native attention: the default's answers, and the same bits in whatever company they are made."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infercore.errors import UnsupportedModel
from infercore.executor import CopyDirection, GroupKind, KVGroup
from infercore_cpu import native
from infercore_cpu.attention import NativeAttention, supports
from native_library import library, using
from paged_sequences import Run, Shape, Step, batch, default

LIB = library()
ISAS = native.isas(LIB)
TOLERANCE = 2e-5  # float32 sums of another order, of values of 4 and more
LENGTH = 1200  # longer than two partitions

isas = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(shape: Shape) -> NativeAttention:
    """With NaN wherever nothing was written."""
    attention = NativeAttention(shape.group, shape.specs, shape.config, LIB)
    allocate = attention.allocate

    def poisoned(num_blocks: int) -> None:
        allocate(num_blocks)
        attention.cache[:, :, :, 1:] = torch.nan

    attention.allocate = poisoned  # type: ignore[method-assign]
    return attention


def pair(shape: Shape, steps: list[Step], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """What the default and what ours gives for each sequence."""
    runs = [Run(maker, shape, seed=seed) for maker in (default, make)]
    for run in runs:
        for step in steps:
            run.step(step)
    for name, expected in runs[0].outputs.items():
        yield expected, runs[1].outputs[name]


SHAPES = st.builds(
    lambda kv, shared, **fields: Shape(heads=kv * shared, kv_heads=kv, **fields),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4, 7, 8, 50]),
    dim=st.sampled_from([2, 8, 16, 40, 64, 80, 256]),
    window=st.sampled_from([None, None, 1, 5, 16, 24, 64, 70, 500]),
    softcap=st.sampled_from([None, None, 0.5, 30.0]),
    block_size=st.sampled_from([16, 32, 64, 128]),
    kv_dtype=st.sampled_from(["float32", "float32", "bfloat16", "float16"]),
)
ROW = st.tuples(st.integers(0, 3), st.sampled_from([1, 1, 1, 2, 3, 15, 16, 17, 40, 90]))
STEPS = st.lists(st.lists(ROW, min_size=1, max_size=4, unique_by=lambda r: r[0]), max_size=5)


@settings(max_examples=30, deadline=None)
@given(SHAPES, STEPS, st.sampled_from(ISAS), st.sampled_from([1, 2, 3]), st.integers(0, 9))
@torch.inference_mode()
def test_any_traffic_equals_the_default(
    shape: Shape, steps: list[Step], isa: str, threads: int, seed: int
) -> None:
    with using(LIB, isa, threads):
        for expected, found in pair(shape, steps, seed):
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@isas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_activations(isa: str, dtype: torch.dtype) -> None:
    """Both round one float32 result, so they may differ by one place where it lies between two."""
    shape = Shape(dim=24, dtype=dtype, kv_dtype=str(dtype).removeprefix("torch."))
    with using(LIB, isa):
        for expected, found in pair(shape, [[(0, 70), (1, 3)], [(1, 1), (0, 1)]]):
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=torch.finfo(dtype).eps)


@isas
@torch.inference_mode()
def test_many_partitions_equal_the_default(isa: str) -> None:
    """One token of a long sequence, split over threads, and the chunk behind it."""
    with using(LIB, isa, threads=2):
        for expected, found in pair(Shape(), [[(0, LENGTH)], [(0, 1)], [(0, 30), (1, 1)]]):
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def cut(length: int, chunk: int) -> list[Step]:
    return [[(0, min(chunk, length - at))] for at in range(0, length, chunk)]


def companions() -> list[Step]:
    """The sequence of interest among others, some of which begin or decode beside it."""
    return [
        [(1, 40), (0, 13)],
        [(2, 1), (0, 1), (1, 1)],
        [(0, 90), (3, 33), (2, 7)],
        [(3, 1), (1, 1), (2, 1), (0, 1)],
        [(0, 41), (1, 2)],
    ]


WAYS: dict[str, Callable[[], tuple[list[Step], dict[str, Any], int]]] = {
    "decode": lambda: (cut(146, 1), {}, 1),
    "chunks of 7": lambda: (cut(146, 7), {}, 1),
    "chunks of 64": lambda: (cut(146, 64), {}, 1),
    "in company": lambda: (companions(), {}, 1),
    "in company, 2 threads": lambda: (companions(), {}, 2),
    "8 threads": lambda: (cut(146, 50), {}, 8),
    "blocks of 32": lambda: (cut(146, 20), {"block_size": 32}, 2),
    "blocks of 128": lambda: (cut(146, 20), {"block_size": 128}, 3),
}
KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16, window": {"window": 37, "kv_dtype": "bfloat16", "dim": 40},
    "float16, soft cap": {"softcap": 3.0, "kv_dtype": "float16", "heads": 4, "kv_heads": 1},
    "bfloat16 all along": {"kv_dtype": "bfloat16", "dtype": torch.bfloat16, "kv_heads": 6},
}


@isas
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_way_does_not_change_a_bit(isa: str, kind: str) -> None:
    shape = Shape(**KINDS[kind])
    with using(LIB, isa):
        alone = Run(make, shape)
        alone.step([(0, 146)])
    for seed, (name, way) in enumerate(WAYS.items()):
        steps, fields, threads = way()
        run = Run(make, Shape(**{**KINDS[kind], **fields}), seed=seed)
        with using(LIB, isa, threads):
            for step in steps:
                run.step(step)
        assert torch.equal(run.outputs[0], alone.outputs[0]), name


@isas
@pytest.mark.parametrize("window", [None, 700])
@torch.inference_mode()
def test_split_sequences_have_the_bits_of_whole_ones(isa: str, window: int | None) -> None:
    """With more threads than rows a token's partitions are summed apart."""
    outputs = []
    for threads in (1, 2, 5):
        run = Run(make, Shape(heads=3, kv_heads=1, window=window))
        with using(LIB, isa, threads):
            for step in ([(0, LENGTH)], [(0, 1)], [(0, 1), (1, 2)]):
                run.step(step)
        outputs.append(run.outputs[0])
    whole = Run(make, Shape(heads=3, kv_heads=1, window=window), seed=1)
    with using(LIB, isa):
        whole.step([(0, LENGTH + 2)])
    assert all(torch.equal(output, whole.outputs[0]) for output in outputs)


@torch.inference_mode()
def test_instruction_sets_agree() -> None:
    found = []
    for isa in ISAS:
        run = Run(make, Shape(softcap=5.0, window=50))
        with using(LIB, isa):
            run.step([(0, 100)])
        found.append(run.outputs[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=TOLERANCE, rtol=0)


@isas
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16"])
@torch.inference_mode()
def test_the_cache_rounds_as_torch_does(isa: str, kv_dtype: str) -> None:
    """Over bit patterns of all kinds: subnormal, halfway, overflowing, infinite and NaN."""
    size, dim = 16, 64
    shape = Shape(heads=1, kv_heads=1, dim=dim, kv_dtype=kv_dtype)
    cache = NativeAttention(shape.group, shape.specs, shape.config, LIB)
    cache.allocate(2)
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, (size, 1, dim), np.uint32)
    patterns[::2] &= 0xFFFFF000  # many of them halfway between two halves
    patterns[3] = (patterns[3] & 0x807FFFFF) | 0x38000000  # subnormal as float16
    k = torch.from_numpy(patterns.view(np.float32))
    plan = cache.plan(batch([size], [size], [[1]], range(size, 2 * size)))
    with using(LIB, isa):
        cache.forward(0, k, k, k, plan)
    rows = 2 if kv_dtype == "bfloat16" else 1
    keys, values = (cache.cache[0, i, 0, 1] for i in (0, 1))
    keys = keys.view(dim // rows, 16, rows).permute(1, 0, 2).reshape(size, dim)
    values = values.view(dim // 16, size // rows, 16, rows).permute(1, 3, 0, 2).reshape(size, dim)
    expected = k[:, 0].to(cache.dtype)
    assert torch.equal(keys.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert torch.equal(values.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


@torch.inference_mode()
def test_padding_rows_are_ignored_and_harm_nobody() -> None:
    """Rows of length 1 on block 0, whatever they bring; block 0 stays as it was."""
    run = Run(make, Shape())
    run.step([(0, 20)])
    expected = Run(make, Shape())
    expected.step([(0, 21)])
    blocks = run.blocks[0]
    padded = batch([1, 1, 1], [21, 1, 1], [blocks, [0], [0]], [blocks[1] * 16 + 4, 0, 0])
    q, k, v = (torch.cat([x, x * torch.nan, x]) for x in run._tokens(0, 20, 1))
    with using(LIB, ISAS[0], threads=3):
        found = run.cache.forward(0, q, k, v, run.cache.plan(padded))
    assert torch.equal(found[0], expected.outputs[0][0, 20])
    assert isinstance(run.cache, NativeAttention)
    assert not run.cache.cache[:, :, :, 0].any()


@torch.inference_mode()
def test_a_nan_stays_in_its_own_row() -> None:
    run = Run(make, Shape())
    run.step([(0, 20), (1, 20)])
    blocks = [run.blocks[0], run.blocks[1]]
    slots = [b[1] * 16 + 4 for b in blocks]
    q, k, v = (torch.cat([x * torch.nan, x]) for x in run._tokens(1, 20, 1))
    found = run.cache.forward(0, q, k, v, run.cache.plan(batch([1, 1], [21, 21], blocks, slots)))
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@torch.inference_mode()
def test_copied_blocks_serve_another_sequence() -> None:
    run = Run(make, Shape(kv_dtype="bfloat16"))
    run.step([(0, 40)])
    copies = [run.free.pop() for _ in run.blocks[0]]
    src, dst = (np.array(blocks, np.int32) for blocks in (run.blocks[0], copies))
    run.cache.copy_blocks(src, dst, CopyDirection.DEVICE_TO_DEVICE)
    q, k, v = (torch.cat([x, x]) for x in run._tokens(0, 40, 1))
    tables = [run.blocks[0], copies]
    plan = run.cache.plan(batch([1, 1], [41, 41], tables, [t[2] * 16 + 8 for t in tables]))
    found = run.cache.forward(1, q, k, v, plan)
    assert torch.equal(found[0], found[1])
    for direction in (CopyDirection.DEVICE_TO_HOST, CopyDirection.HOST_TO_DEVICE):
        with pytest.raises(UnsupportedModel, match="on the host already"):
            run.cache.copy_blocks(src, dst, direction)


def test_what_the_kernels_do_not_compute_is_left_to_others() -> None:
    assert supports(Shape().group, Shape().specs)
    assert supports(Shape(dim=256).group, Shape(dim=256).specs)
    assert not supports(Shape().group, Shape(dim=272).specs)
    assert not supports(Shape(block_size=24).group, Shape().specs)
    latent = KVGroup("latent", GroupKind.LATENT, (0,), 16, 0)
    assert not supports(latent, Shape().specs)
