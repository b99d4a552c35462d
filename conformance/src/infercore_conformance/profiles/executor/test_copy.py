"""Copies of whole blocks: what they hold, and when they take effect."""

import numpy as np

from infercore.executor import CopyDirection
from infercore.step import Float32
from infercore_conformance import AtLeast, Feature, Level, check
from infercore_conformance.fixtures import Numerics
from infercore_conformance.running import TIMEOUT, Running
from infercore_conformance.steps import Row, Stepper, prompt
from infercore_conformance.tolerances import logprobs_bound

TWO = AtLeast("max_in_flight", 2)
NEXT = 3  # the token that follows the copied prompt


@check("executor.copy.blocks", "A copied block holds what its source holds.")
def test_a_copied_block_is_its_source(running: Running, numerics: Numerics) -> None:
    """A row that reads the copy gets the distribution of one that reads the source."""
    stepper = running.stepper()
    row = _prefilled(running, stepper)
    [expected] = running.forced(stepper, [_reader(row, row.blocks, slot=1)], [[]])
    copies = _copy(running, stepper, row)
    _reads_alike(running, stepper, row, copies, expected, numerics)


@check(
    "executor.copy.ordered",
    "A copy takes effect behind the steps before it and ahead of those behind it.",
    level=Level.EXTENDED,
    needs=TWO,
)
def test_copies_are_ordered_with_steps(running: Running, numerics: Numerics) -> None:
    """Nothing is awaited: the write, the copy, and the step that reads it are all in flight."""
    stepper = running.stepper()
    size = running.groups[0].block_size
    row = Row(0, prompt(size))
    writing = running.submit(stepper.step([(row, size)]))
    copies = _copy(running, stepper, row, wait=False)
    ahead = _reader(row, copies, slot=1)
    reading = running.submit(stepper.step([(ahead, 1)], logprobs=1))
    writing.result(TIMEOUT)
    found = reading.result(TIMEOUT).logprobs[0, 0]
    expected = running.run(stepper.step([(_reader(row, row.blocks, slot=2), 1)], logprobs=1))
    bound = logprobs_bound(running.config.dtype)
    numerics.record("logprob_max_abs", abs(found - expected.logprobs[0, 0]), bound)


@check(
    "executor.copy.host",
    "A block comes back from the host as it went there.",
    level=Level.EXTENDED,
    needs=Feature("block_copy"),
)
def test_a_block_comes_back_from_the_host(running: Running, numerics: Numerics) -> None:
    stepper = running.stepper()
    row = _prefilled(running, stepper)
    [expected] = running.forced(stepper, [_reader(row, row.blocks, slot=1)], [[]])
    places = [[number] for number, _ in enumerate(running.groups)]
    _move(running, row.blocks, places, CopyDirection.DEVICE_TO_HOST)
    targets = [[free.pop()] for free in stepper.free]
    _move(running, places, targets, CopyDirection.HOST_TO_DEVICE)
    _reads_alike(running, stepper, row, targets, expected, numerics)


def _prefilled(running: Running, stepper: Stepper) -> Row:
    """A row whose prompt fills one block of every group."""
    size = running.groups[0].block_size
    row = Row(0, prompt(size))
    running.run(stepper.step([(row, size)]))
    return row


def _copy(running: Running, stepper: Stepper, row: Row, *, wait: bool = True) -> list[list[int]]:
    targets = [[free.pop()] for free in stepper.free]
    _move(running, row.blocks, targets, CopyDirection.DEVICE_TO_DEVICE, wait=wait)
    return targets


def _move(
    running: Running,
    sources: list[list[int]],
    targets: list[list[int]],
    direction: CopyDirection,
    *,
    wait: bool = True,
) -> None:
    for group, source, target in zip(running.groups, sources, targets, strict=True):
        arrays = (np.array(source, np.int32), np.array(target, np.int32))
        handle = running.executor.copy_blocks(group.name, *arrays, direction)
        if wait:
            handle.result(TIMEOUT)


def _reader(row: Row, blocks: list[list[int]], slot: int) -> Row:
    """A row that has `row`'s prompt in `blocks` already, and one more token to compute."""
    prefix = [list(of_group) for of_group in blocks]
    return Row(slot, [*row.ids[: row.prompt], NEXT], done=row.prompt, blocks=prefix)


def _reads_alike(
    running: Running,
    stepper: Stepper,
    row: Row,
    copies: list[list[int]],
    expected: Float32,
    numerics: Numerics,
) -> None:
    """The source is overwritten first, so that a copy that is only a name for it shows.

    expected: of the source before it was copied, so that one that lost its content shows too.
    """
    running.run(stepper.step([(Row(2, prompt(row.prompt, salt=1), blocks=row.blocks), row.prompt)]))
    [found] = running.forced(stepper, [_reader(row, copies, slot=3)], [[]])
    bound = logprobs_bound(running.config.dtype)
    numerics.record("logprobs_max_abs", float(np.abs(found - expected).max()), bound)
