"""The paged cache: padding and stale blocks are never read, blocks are copied and shared."""

from collections.abc import Mapping

import numpy as np
import pytest

from infercore.executor import CopyDirection
from infercore_conformance import Level, check
from infercore_conformance.accuracy import error_bound, relative_error
from infercore_conformance.device import IS_BACKEND, Device
from infercore_conformance.fixtures import Numerics
from infercore_conformance.paged import BLOCKS, Sequences, Shape
from infercore_conformance.subject import Subject


@check(
    "ops.attention.padding",
    "Rows and tokens of padding, on block 0, touch no other row.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("window", [None, 20])
def test_padding(subject: Subject, numerics: Numerics, window: int | None) -> None:
    """Padding's keys are no numbers, and a table names block 0 behind a row's own blocks: zero
    times NaN is NaN.
    """
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(window=window))
        sequences.step([(0, 37), (1, 5)], spare_rows=3)
        for _ in range(3):
            sequences.step([(0, 1), (1, 1)], spare_rows=5)
        sequences.check(numerics, "beside padding")


@check(
    "ops.attention.stale",
    "A block that is handed out again holds nothing of its past.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("spoilt", [False, True], ids=["finite", "not_finite"])
def test_stale(subject: Subject, numerics: Numerics, window: int | None, *, spoilt: bool) -> None:
    """The former owner may have left numbers, or NaN. `fresh_blocks` names it when it gets a new
    owner, and what stands behind the new one's end is not read.
    """
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(window=window))
        sequences.step([(0, max(100, 2 * sequences.size + 9))], spoilt=0 if spoilt else None)
        sequences.release(0)
        sequences.step([(1, 19), (2, 1)])
        for _ in range(3):
            sequences.step([(1, 1), (2, 1)])
        sequences.check(numerics, "in used blocks")


@check(
    "ops.attention.other_rows",
    "A row whose keys are no numbers spoils no other row.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_other_rows(subject: Subject, numerics: Numerics) -> None:
    """A model may overflow for one prompt; that one request ends, and nobody else notices."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        sequences.step([(9, 40)], spoilt=9)
        for rows in ([(0, 30), (9, 1), (1, 4)], [(0, 1), (9, 1), (1, 1)]):
            sequences.step(rows, spoilt=9)
        sequences.release(9)
        sequences.check(numerics, "beside a row of NaN")


@check(
    "ops.attention.shared",
    "Two rows may read the same blocks.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_shared(subject: Subject, numerics: Numerics) -> None:
    """A cached prefix: both go on in blocks of their own, in one step and with equal results."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        sequences.step([(0, 2 * sequences.size), (2, 5)])
        sequences.fork(0, 1)
        sequences.step([(0, 3), (1, 3), (2, 7)])
        sequences.step([(1, 1), (2, 1), (0, 1)])
        bound = error_bound(device.dtype, device.backend.config.kv_dtype)
        difference = relative_error(sequences.output(1), sequences.output(0))
        numerics.record(f"{device.dtype}.repeated", difference, bound)
        sequences.check(numerics, "on a shared prefix")


@check(
    "ops.attention.copy",
    "A copied block is the block, in every layer, and others stay what they are.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_copy(subject: Subject, numerics: Numerics) -> None:
    """Within the device: keys and values, of all heads. Neither sources nor targets are in any
    order, or neighbours, and rows of few blocks show which one went where: attention itself does
    not know in what order it reads keys.
    """
    draw = np.random.default_rng(3)
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        size = sequences.size
        rows = [(0, size - 2), (1, 9), (2, 2 * size - 5), (3, size)]
        sequences.step(rows)
        sequences.step([(9, len(sequences.free) * size)])  # what is not copied is not there
        sequences.release(9)
        source = [block for name, _ in rows for block in sequences.blocks[name]]
        target = [sequences.free.pop(draw.integers(len(sequences.free))) for _ in source]
        _copy(sequences, dict(zip(source, target, strict=True)), draw)
        sequences.free += source  # somebody else's from now on
        sequences.step([(4, len(source) * size), *((name, 1) for name, _ in rows)])
        sequences.step([(name, 1) for name in range(5)])
        sequences.check(numerics, "in copied blocks")


def _copy(sequences: Sequences, moves: Mapping[int, int], draw: np.random.Generator) -> None:
    """Move all sequences, {from: to}, by one call whose order is drawn."""
    src, dst = draw.permutation(np.array(list(moves.items()), np.int32)).T.copy()
    sequences.cache.copy_blocks(src, dst, CopyDirection.DEVICE_TO_DEVICE)
    for blocks in sequences.blocks.values():
        blocks[:] = [moves[block] for block in blocks]


@check(
    "ops.attention.allocate",
    "A second allocation replaces the first.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_allocate(subject: Subject, numerics: Numerics) -> None:
    """The cache is measured with one block, and allocated when the memory for it is known."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        sequences.cache.allocate(1)
        sequences.cache.allocate(3 * BLOCKS)
        sequences.free = list(range(2 * BLOCKS, 3 * BLOCKS))
        sequences.step([(0, 60), (1, 5)])
        sequences.step([(0, 1), (1, 1)])
        sequences.check(numerics, "in a larger cache")


@check(
    "ops.attention.kv_dtype",
    "A KV cache in each dtype that is declared holds what is written to it.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_kv_dtype(subject: Subject, numerics: Numerics, softcap: float | None) -> None:
    """The bound is that of the wider rounding, of activations or of the cache."""
    for kv_dtype in subject.capabilities.kv_dtypes:
        for dtype in subject.capabilities.dtypes:
            kept = dtype if kv_dtype == "auto" else kv_dtype
            device = Device.open(subject, dtype, kv_dtype=kept)
            sequences = Sequences(device, Shape(softcap=softcap))
            sequences.step([(0, 37), (1, 5)])
            sequences.step([(0, 1), (1, 12)])
            sequences.check(numerics, f"in a cache of {kept}")
