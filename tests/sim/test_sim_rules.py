"""What an engine must not do with steps in flight is noticed, by the rule that it breaks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercore.errors import StepDropped, StepFailed
from infercore.executor import CopyDirection
from infercore.sampling import RowStatus
from infercore.step import LateInputs
from infercore_sim.rules import RuleBroken
from model_runs import prompt
from sim_device import DYNAMIC, Device, device, run
from stepper import Sequenced


@pytest.fixture
def sim(folder: Path) -> Iterator[Device]:
    with device(folder) as made:
        yield made


def nothing_late(rows: int) -> LateInputs:
    return LateInputs(np.zeros(0, np.int32), np.zeros((0, 5), np.uint32), np.zeros(rows, np.bool_))


def test_submit_does_not_wait_and_a_third_step_is_one_too_many(sim: Device) -> None:
    stepper = sim.stepper()
    rows = [Sequenced(slot, prompt(4)) for slot in range(3)]
    late = sim.executor.submit(stepper.step([(rows[0], 4)], late=True))
    behind = sim.executor.submit(stepper.step([(rows[1], 4)]))
    third = stepper.step([(rows[2], 4)])
    with pytest.raises(RuleBroken, match=r"rule \(a\): step 3 is submitted while 2"):
        sim.executor.submit(third)
    with pytest.raises(TimeoutError):
        behind.result(0.05)
    late.sample(nothing_late(1))
    assert late.result(30).n_tokens.tolist() == [1]
    for handle in (behind, sim.executor.submit(third)):
        assert handle.result(30).n_tokens.tolist() == [1]


def test_one_step_at_a_time_where_that_is_the_most(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},in-flight-1") as sim:
        stepper = sim.stepper()
        first = sim.executor.submit(stepper.step([(Sequenced(0, prompt(4)), 4)]))
        second = stepper.step([(Sequenced(1, prompt(4)), 4)])
        with pytest.raises(RuleBroken, match=r"rule \(a\): step 2 is submitted while 1"):
            sim.executor.submit(second)
        first.result(30)
        run(sim.executor, second)


@pytest.mark.parametrize(
    "name", ["token_ids", "positions", "block_table", "sample", "seeds", "slot_init"]
)
def test_an_array_that_changes_in_flight_is_noticed(sim: Device, name: str) -> None:
    step = sim.stepper().step([(Sequenced(0, prompt(4)), 4)])
    handle = sim.executor.submit(step)
    array: Any = getattr(step, name)
    (array if name != "slot_init" else array[0].prompt_ids)[0] ^= 1
    with pytest.raises(RuleBroken, match=rf"rule \(b\): {name}.* of step 1 changed"):
        handle.result(30)


def test_a_change_before_the_step_begins_never_reaches_the_model(sim: Device) -> None:
    stepper = sim.stepper()
    late = sim.executor.submit(stepper.step([(Sequenced(0, prompt(4)), 4)], late=True))
    step = stepper.step([(Sequenced(1, prompt(4)), 4)])
    behind = sim.executor.submit(step)
    step.token_ids[0] = 10**6  # would fail in the embedding
    late.sample(nothing_late(1))
    late.result(30)
    with pytest.raises(RuleBroken, match=r"rule \(b\): token_ids of step 2 changed"):
        behind.result(30)


def test_late_inputs_are_the_devices_too(sim: Device) -> None:
    handle = sim.executor.submit(sim.stepper().step([(Sequenced(0, prompt(4)), 4)], late=True))
    late = nothing_late(1)
    handle.sample(late)
    late.drop[0] = True
    with pytest.raises(RuleBroken, match=r"rule \(b\): drop of step 1's late inputs changed"):
        handle.result(30)


def test_a_returned_step_is_the_engines_again(sim: Device) -> None:
    step = sim.stepper().step([(Sequenced(0, prompt(4)), 4)])
    run(sim.executor, step)
    step.token_ids[:] = 0


def test_arrays_are_contiguous(sim: Device) -> None:
    step = sim.stepper().step([(Sequenced(0, prompt(8)), 8)])
    step.positions = np.zeros((8, 2), np.int32)[:, 0]
    with pytest.raises(RuleBroken, match="step 1: positions is not C-contiguous"):
        sim.executor.submit(step)


def test_blocks_in_flight_are_not_handed_out_again(sim: Device) -> None:
    stepper = sim.stepper()
    first = stepper.step([(Sequenced(0, prompt(4)), 4)], late=True)
    handle = sim.executor.submit(first)
    second = stepper.step([(Sequenced(1, prompt(4)), 4)])
    second.fresh_blocks = first.fresh_blocks
    with pytest.raises(RuleBroken, match=r"rule \(c\): step 2 hands out \[\d+\], which step 1"):
        sim.executor.submit(second)
    handle.sample(nothing_late(1))
    handle.result(30)
    second.fresh_blocks = (np.zeros(1, np.int32),)
    with pytest.raises(RuleBroken, match=r"rule \(i\): step 2 hands out block 0"):
        sim.executor.submit(second)


def test_a_slot_does_not_start_anew_in_flight(sim: Device) -> None:
    stepper = sim.stepper()
    handle = sim.executor.submit(stepper.step([(Sequenced(0, prompt(4)), 4)]))
    with pytest.raises(RuleBroken, match=r"rule \(d\): step 2 starts slot 0 anew"):
        sim.executor.submit(stepper.step([(Sequenced(0, prompt(4)), 4)]))
    handle.result(30)


def test_only_a_row_of_one_token_is_followed(sim: Device) -> None:
    stepper = sim.stepper()
    row, other = Sequenced(0, prompt(4)), Sequenced(1, prompt(9))
    handle = sim.executor.submit(stepper.step([(row, 4), (other, 3)]))
    step = stepper.step([(row, 1)], sources={0: 0})
    for wrong in (1, 2):  # a row that is not sampled, a row that is not there
        bad = replace(step, token_source=np.array([wrong], np.int32))
        with pytest.raises(RuleBroken, match=r"rule \(h\): step 2 follows"):
            sim.executor.submit(bad)
    after = sim.executor.submit(step)
    for each in (handle, after):
        assert RowStatus.OK in each.result(30).status


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ("no-late", {"late": True}, "step 1 is late, which was not declared"),
        ("no-prompt-logprobs", {"targets": True}, "prompt targets, which were not declared"),
    ],
)
def test_what_was_not_declared_is_not_asked(
    folder: Path, words: str, changes: dict[str, Any], message: str
) -> None:
    with device(folder, f"{DYNAMIC},{words}") as sim:
        step = sim.stepper().step([(Sequenced(0, prompt(4)), 4)], **changes)
        with pytest.raises(RuleBroken, match=message):
            sim.executor.submit(step)


def test_no_row_yields_more_tokens_than_declared(sim: Device) -> None:
    step = sim.stepper().step([(Sequenced(0, prompt(4)), 4)])
    step.max_tokens[0] = 2
    with pytest.raises(RuleBroken, match="step 1 wants more than 1 tokens of a row"):
        sim.executor.submit(step)


def test_a_handle_is_used_in_order_and_once(sim: Device) -> None:
    stepper = sim.stepper()
    handle = sim.executor.submit(stepper.step([(Sequenced(0, prompt(4)), 4)], late=True))
    with pytest.raises(RuleBroken, match=r"result\(\) comes before sample\(\)"):
        handle.result()
    handle.sample(nothing_late(1))
    with pytest.raises(RuleBroken, match=r"sample\(\) comes once"):
        handle.sample(nothing_late(1))
    handle.result(30)
    with pytest.raises(RuleBroken, match=r"result\(\) comes once"):
        handle.result(30)
    plain = sim.executor.submit(stepper.step([(Sequenced(0, prompt(4)), 4)]))
    with pytest.raises(RuleBroken, match="late=False"):
        plain.sample(nothing_late(1))
    plain.result(30)


def test_an_extra_that_was_not_declared_fails_its_step(sim: Device) -> None:
    step = sim.stepper().step([(Sequenced(0, prompt(4)), 4)])
    step.extras = {"pixels": np.zeros(1, np.float32)}
    with pytest.raises(StepFailed, match="step 1 carries pixels, which sim does not know"):
        sim.executor.submit(step)
    step.extras = {}
    run(sim.executor, step)


def test_what_follows_a_failed_step_is_dropped_until_the_engine_heard(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},oom@0") as sim:
        stepper = sim.stepper()
        failed, dropped = (
            sim.executor.submit(stepper.step([(Sequenced(slot, prompt(4)), 4)])) for slot in (0, 1)
        )
        with pytest.raises(StepFailed, match="out of memory"):
            failed.result(30)
        with pytest.raises(StepDropped, match="step 2 followed one that failed"):
            dropped.result(30)
        assert run(sim.executor, stepper.step([(Sequenced(2, prompt(4)), 4)])).n_tokens.all()


def test_copies_are_ordered_with_steps(sim: Device) -> None:
    """The copy of a prompt's block is read as the prompt itself, though submitted before it ran."""
    stepper = sim.stepper()
    row = Sequenced(0, prompt(16))
    late = sim.executor.submit(stepper.step([(row, 16)], late=True))
    (block,), copy = row.blocks[0], stepper._free[0].pop()
    src, dst = np.array([block], np.int32), np.array([copy], np.int32)
    name = sim.groups[0].name
    copied = sim.executor.copy_blocks(name, src, dst, CopyDirection.DEVICE_TO_DEVICE)
    with pytest.raises(TimeoutError):
        copied.result(0.05)
    late.sample(nothing_late(1))
    row.ids.append(int(late.result(30).tokens[0, 0]))
    copied.result(30)
    step = stepper.step([(row, 1)], logprobs=0)
    expected = run(sim.executor, step)
    step.block_table[0, 0, 0] = copy
    step.step_id += 1
    again = run(sim.executor, replace(step, fresh_blocks=()))
    assert again.logprobs.tolist() == expected.logprobs.tolist()
    with pytest.raises(RuleBroken, match="a copy samples nothing"):
        copied.sample(nothing_late(1))
