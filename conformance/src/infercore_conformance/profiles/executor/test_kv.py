"""The KV cache: every block is usable, none is special but block 0, what was there is gone."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from infercore.sampling import RowStatus
from infercore_conformance import check, thorough
from infercore_conformance.fixtures import Models, Numerics, Start
from infercore_conformance.models import VOCAB
from infercore_conformance.running import BLOCKS, Running
from infercore_conformance.steps import Row, Stepper, prompt
from infercore_conformance.tolerances import logprobs_bound

LENGTH = 60
FORCED = [11, 7, 140]
NEXT = 3  # the token that a row goes on with
BROKEN = 5  # the token whose embedding is no number


@check("executor.kv.order", "Which blocks a sequence has, and in what order, changes nothing.")
@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=thorough)])
def test_the_order_of_blocks(
    start: Start, architecture: str, seed: int, numerics: Numerics
) -> None:
    """Blocks come from a free list; only the block table says where a position is."""
    running = start(architecture)
    [one] = running.forced(running.stepper(0), [Row(0, prompt(LENGTH))], [FORCED])
    running.executor.reset()
    [other] = running.forced(running.stepper(seed), [Row(0, prompt(LENGTH))], [FORCED])
    _record(running, one, other, numerics)


@check("executor.kv.every_block", "Every block that was allocated holds what is written to it.")
def test_every_block_is_usable(running: Running, numerics: Numerics) -> None:
    """The last one too. Rows fill the cache to its end, and then decode."""
    size = running.groups[0].block_size
    length = max(2 * size, 33)
    rows_at_once = (BLOCKS - 1) // -(-(length + len(FORCED)) // size)
    [expected] = running.forced(running.stepper(), [Row(0, prompt(length))], [FORCED])
    running.executor.reset()
    stepper = running.stepper()
    used: list[Row] = []
    for number in range(rows_at_once):
        row = Row(number % running.config.max_num_seqs, prompt(length))
        [found] = running.forced(stepper, [row], [FORCED])
        _record(running, expected, found, numerics)
        used.append(row)
    for row in used:  # what the later ones wrote left the first ones alone
        again = Row(row.slot, row.ids[: length + 1], blocks=row.blocks, done=length)
        [found] = running.forced(stepper, [again], [[]])
        _record(running, expected[1], found[0], numerics)


@check("executor.kv.reused", "A block that is handed out again holds nothing of its past.")
def test_a_reused_block(start: Start, architecture: str, numerics: Numerics) -> None:
    """Positions behind a sequence's end hold the former owner's keys: they are never read."""
    running = start(architecture)
    stepper = running.stepper()
    [expected] = running.forced(stepper, [Row(0, prompt(LENGTH))], [FORCED])
    running.executor.reset()
    stepper = running.stepper()
    for salt in range(1, 4):
        former = Row(1, prompt(LENGTH + 40, salt=salt))
        running.forced(stepper, [former], [[]])
        stepper.release(former)
    [found] = running.forced(stepper, [Row(0, prompt(LENGTH))], [FORCED])
    _record(running, expected, found, numerics)


@check("executor.kv.shared", "Two rows may read the same blocks.")
def test_rows_share_a_prefix(running: Running, numerics: Numerics) -> None:
    """The prefix cache: a row starts behind blocks that another one wrote, and both go on."""
    size = running.groups[0].block_size
    stepper = running.stepper()
    first = Row(0, prompt(size + 5))
    running.run(stepper.step([(first, size + 5)]))
    ids = [*first.ids[:size], *prompt(9, salt=2)]
    prefix = [blocks[:1] for blocks in first.blocks]
    sharing = Row(1, list(ids), done=size, blocks=[list(blocks) for blocks in prefix])
    first.ids.append(NEXT)
    both = running.run(stepper.step([(first, 1), (sharing, 9)], logprobs=VOCAB))
    running.executor.reset()
    alone = running.run(running.stepper().step([(Row(0, ids), len(ids))], logprobs=VOCAB))
    difference = np.abs(both.top_logprobs[1] - alone.top_logprobs[0]).max()
    numerics.record("logprobs_max_abs", float(difference), logprobs_bound(running.config.dtype))


@check("executor.kv.allocated_again", "A second allocation replaces the first.")
def test_allocating_again(running: Running, numerics: Numerics) -> None:
    """Larger, and then smaller: the cache is the last one that was asked for."""
    expected = None
    for blocks in (BLOCKS, 3 * BLOCKS, BLOCKS // 2):
        running.executor.allocate_kv({group.name: blocks for group in running.groups})
        running.executor.reset()
        stepper = Stepper(running.groups, blocks)
        for free in stepper.free:
            free.sort()  # the highest numbers come first
        [found] = running.forced(stepper, [Row(0, prompt(LENGTH))], [FORCED])
        expected = found if expected is None else expected
        _record(running, expected, found, numerics)


@check("executor.kv.not_finite", "A row whose logits are no numbers says so, and harms no other.")
def test_not_a_number_stays_in_its_row(
    start: Start, models: Models, tmp_path_factory: pytest.TempPathFactory, numerics: Numerics
) -> None:
    """Its status is NOT_FINITE. Its blocks hold NaN, which is gone for whoever gets them next.

    Zero times NaN is NaN: a masked position is not to be multiplied, or not to hold one.
    """
    running = start(_with_a_broken_token(models, tmp_path_factory))
    ids = [token if token != BROKEN else 0 for token in prompt(40)]
    [expected] = running.forced(running.stepper(), [Row(0, list(ids))], [FORCED])
    running.executor.reset()
    stepper = running.stepper()
    broken = Row(1, [*ids[:-1], BROKEN])
    step = stepper.step([(Row(0, list(ids)), 40), (broken, 40)], logprobs=VOCAB)
    result = running.run(step)
    assert result.status.tolist() == [RowStatus.OK, RowStatus.NOT_FINITE]
    assert result.n_tokens[1] == 0, "a row that is not finite yields no token"
    first = float(result.top_logprobs[0, 0, 0])
    bound = logprobs_bound(running.config.dtype)
    numerics.record("logprob_max_abs", abs(first - float(expected[0].max())), bound)
    stepper.release(broken)
    [found] = running.forced(stepper, [Row(1, list(ids))], [FORCED])
    _record(running, expected, found, numerics)


def _with_a_broken_token(models: Models, folders: pytest.TempPathFactory) -> Path:
    folder = folders.mktemp("broken")
    source = models(tie_word_embeddings=False)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    embedding = next(name for name in tensors if "embed" in name or "wte" in name)
    tensors[embedding][BROKEN] = np.nan
    save_file(tensors, folder / "model.safetensors")
    return folder


def _record(running: Running, one: object, other: object, numerics: Numerics) -> None:
    difference = np.abs(np.asarray(one) - np.asarray(other)).max()
    numerics.record("logprobs_max_abs", float(difference), logprobs_bound(running.config.dtype))
