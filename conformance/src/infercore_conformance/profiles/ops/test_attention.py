"""Attention over a paged cache: what is read of it, and what it is worth."""

import pytest

from infercore_conformance import Level, check, thorough
from infercore_conformance.device import IS_BACKEND, Device
from infercore_conformance.fixtures import Numerics
from infercore_conformance.paged import BLOCKS, Sequences, Shape
from infercore_conformance.subject import Subject

LENGTHS = (1, 5, 15, 16, 17, 33, 70)


def _decode(sequences: Sequences, names: range, steps: int) -> None:
    for _ in range(steps):
        sequences.step([(name, 1) for name in names])


@check(
    "ops.attention.heads",
    "Attention is right for any count of heads and of KV heads, and any size of a head.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize(
    ("heads", "kv_heads"),
    [
        (4, 4),
        (6, 2),
        (4, 1),
        pytest.param(32, 8, marks=thorough),
        pytest.param(7, 1, marks=thorough),
    ],
)
@pytest.mark.parametrize(
    "dim", [8, 64, 80, 128, pytest.param(96, marks=thorough), pytest.param(256, marks=thorough)]
)
def test_heads(subject: Subject, numerics: Numerics, heads: int, kv_heads: int, dim: int) -> None:
    """Head h reads KV head h // (heads / kv_heads): neighbours share. Layers of a group have
    caches and scales of their own.
    """
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(heads, kv_heads, dim))
        sequences.step([(0, 21), (1, 1), (2, 9)])
        _decode(sequences, range(3), 2)
        sequences.check(numerics)


@check(
    "ops.attention.lengths",
    "Rows of any lengths stand beside each other, in prefill and in decode.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("backwards", [False, True])
def test_lengths(subject: Subject, numerics: Numerics, *, backwards: bool) -> None:
    """Ends of blocks are where a length is off by one. Behind a row's end is nothing of its own."""
    names = range(len(LENGTHS))
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        rows = list(enumerate(LENGTHS))
        sequences.step(rows[::-1] if backwards else rows)
        _decode(sequences, names[::-1] if backwards else names, 3)
        sequences.check(numerics)


@check(
    "ops.attention.mixed",
    "Prompts, chunks of prompts and decodes share a step, in any order.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_mixed(subject: Subject, numerics: Numerics) -> None:
    """Decodes come first in core's steps, but nothing says that they must."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        sequences.step([(0, 40), (1, 3)])
        sequences.step([(2, 50), (0, 1), (3, 1)])
        sequences.step([(1, 1), (2, 20), (0, 1), (3, 30)])
        sequences.step([(3, 1), (2, 1), (1, 17), (0, 1)])
        sequences.check(numerics)


@check(
    "ops.attention.chunks",
    "A prompt that comes in chunks is attended to as one that comes whole.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("chunk", [7, 16, 50, *(pytest.param(c, marks=thorough) for c in (1, 3))])
@pytest.mark.parametrize("window", [None, 24])
def test_chunks(subject: Subject, numerics: Numerics, chunk: int, window: int | None) -> None:
    """A chunk's first query is at position context − count: it sees what was written before."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(window=window))
        length = max(100, 2 * sequences.size + 9)
        for at in range(0, length, chunk):
            sequences.step([(0, min(chunk, length - at))])
        sequences.check(numerics, f"in chunks of {chunk}")


@check(
    "ops.attention.window",
    "A window is the last positions, the query's own among them, and nothing before is read.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize(
    "window", [1, 16, 17, 40, *(pytest.param(w, marks=thorough) for w in (2, 15, 64, 500))]
)
def test_window(subject: Subject, numerics: Numerics, window: int) -> None:
    """Whole prompts, chunks and decodes; the table names block 0 for what left the window."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(window=window))
        sequences.step([(0, max(90, 2 * sequences.size)), (1, 10), (2, window)])
        sequences.step([(0, 45), (1, 1), (2, 1)])
        _decode(sequences, range(3), 3)
        sequences.check(numerics, f"in a window of {window}")


@check(
    "ops.attention.softcap",
    "Scores are capped before the mask, in prefill and in decode.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("softcap", [1.5, 50.0])
@pytest.mark.parametrize("window", [None, 20])
def test_softcap(subject: Subject, numerics: Numerics, softcap: float, window: int | None) -> None:
    """softcap · tanh(score / softcap), of scores that are scaled already (Gemma 2)."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(softcap=softcap, window=window, magnitude=2.0))
        sequences.step([(0, 50), (1, 3)])
        sequences.step([(0, 1), (1, 20)])
        _decode(sequences, range(2), 2)
        sequences.check(numerics, f"under a cap of {softcap}")


@check(
    "ops.attention.large_scores",
    "Scores beyond the largest exponential leave the result right.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_large_scores(subject: Subject, numerics: Numerics) -> None:
    """exp(89) is infinite in float32: the largest score is taken off first. A score of 100 is known
    to 10⁻⁵ in float32, and so is its exponential.
    """
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(dim=64, magnitude=32.0))
        sequences.step([(0, 60), (1, 3)])
        _decode(sequences, range(2), 2)
        sequences.check(numerics, bound=2e-4)


@check(
    "ops.attention.block_sizes",
    "Attention is right for every block size that is declared.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("window", [None, 24])
def test_block_sizes(subject: Subject, numerics: Numerics, window: int | None) -> None:
    """Lengths around the end of the first and of the second block."""
    for size in subject.capabilities.block_sizes:
        for device in Device.each(subject, block_size=size):
            sequences = Sequences(device, Shape(window=window))
            sequences.step([(0, size - 1), (1, size), (2, size + 1), (3, 2 * size)])
            _decode(sequences, range(4), 3)
            sequences.check(numerics)


@check(
    "ops.attention.block_order",
    "Which blocks a sequence has, and in what order, changes nothing.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("order", ["rising", "falling", "drawn"])
def test_block_order(subject: Subject, numerics: Numerics, order: str) -> None:
    """The highest block that was allocated is as good as any other."""
    orders = {"rising": range(BLOCKS - 1, 0, -1), "falling": range(1, BLOCKS), "drawn": None}
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(), seed=5, order=orders[order])
        size = sequences.size
        sequences.step([(0, 4 * size + 6), (1, 2 * size + 8)])
        sequences.step([(2, 3 * size + 2), (0, 1), (1, size + 9)])
        _decode(sequences, range(3), 2)
        sequences.check(numerics, f"whose numbers are {order}")


@check(
    "ops.attention.many_rows",
    "Decodes of many rows, of unlike lengths, are right.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("rows", [24, pytest.param(64, marks=thorough)])
def test_many_rows(subject: Subject, numerics: Numerics, rows: int) -> None:
    """One long row among short ones is where work is split unevenly."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape())
        sequences.step([(name, 300 if name == 7 else 1 + name % 19) for name in range(rows)])
        _decode(sequences, range(rows), 2)
        sequences.check(numerics)


@check(
    "ops.attention.long",
    "A long context is summed right, in prefill and in decode.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("length", [700, pytest.param(1500, marks=thorough)])
@pytest.mark.parametrize("window", [None, 530])
def test_long(subject: Subject, numerics: Numerics, length: int, window: int | None) -> None:
    """Long rows are split over keys, and the parts are merged by their own largest scores."""
    for device in Device.each(subject):
        sequences = Sequences(device, Shape(4, 2, 32, window=window, magnitude=4.0))
        sequences.step([(0, length - 130), (1, 2)])
        sequences.step([(0, 130), (1, 1)])
        _decode(sequences, range(2), 2)
        sequences.check(numerics, bound=4e-5)
