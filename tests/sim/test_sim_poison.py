"""What was not written is NaN: whoever reads it, or padding, is told so; nobody else notices."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infercore.executor import Bucket
from infercore.sampling import RowStatus
from infercore.step import Step
from infercore_sim.backend import SimBackend
from infercore_sim.options import SimOptions
from model_runs import PROMPTS, check, greedy, load, prompt
from sim_device import Device, device, padded, run
from stepper import GREEDY, Sequenced, Stepper
from tiny_models import FAMILIES, make_tiny


@pytest.fixture
def sim(folder: Path) -> Iterator[Device]:
    with device(folder) as made:
        yield made


def started(sim: Device, length: int = 20) -> tuple[Stepper, Sequenced]:
    """A sequence whose prompt is in the cache, and whose first token is known."""
    stepper = sim.stepper()
    row = Sequenced(0, prompt(length))
    result = run(sim.executor, stepper.step([(row, length)]))
    assert result.status.tolist() == [RowStatus.OK]
    row.ids.append(int(result.tokens[0, 0]))
    return stepper, row


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_transformers_where_only_what_was_written_is_read(
    family: str, tmp_path: Path
) -> None:
    oracle = make_tiny(tmp_path, family)
    runner = load(tmp_path, SimBackend(SimOptions()))
    for ids, logits in zip(*greedy(runner, PROMPTS, tokens=16, chunk=50), strict=True):
        check(oracle, ids, logits)


def one_too_far(step: Step) -> None:
    step.context_len += 1


def block_0(step: Step) -> None:
    step.block_table[0, 0, -1] = 0


def block_of_nobody(step: Step) -> None:
    step.block_table[0, 0, 0] = 1 + (step.block_table[0, 0, 0] % 3)


def fresh_after_writing(step: Step) -> None:
    step.fresh_blocks = (step.block_table[0, 0, :1].copy(),)


def written_to_block_0(step: Step) -> None:
    step.slot_mapping[:] = 3


@pytest.mark.parametrize(
    "defect", [one_too_far, block_0, block_of_nobody, fresh_after_writing, written_to_block_0]
)
def test_a_read_of_what_was_not_written_is_not_finite(
    sim: Device, defect: Callable[[Step], None]
) -> None:
    stepper, row = started(sim)
    bystander = Sequenced(1, prompt(20))
    run(sim.executor, stepper.step([(bystander, 19)]))
    step = stepper.step([(row, 1), (bystander, 1)])
    defect(step)
    rows = slice(None) if defect in (one_too_far, written_to_block_0) else slice(1)
    status = run(sim.executor, step).status
    assert (status[rows] == RowStatus.NOT_FINITE).all()
    assert (np.delete(status, np.arange(2)[rows]) == RowStatus.OK).all()


def test_a_window_hides_what_was_let_go(sim: Device) -> None:
    """The blocks before it are 0 in the table: reading them would show."""
    stepper, row = started(sim, length=60)
    step = stepper.step([(row, 1)])
    assert (step.block_table[0, 0] == 0).any()
    assert run(sim.executor, step).status.tolist() == [RowStatus.OK]


def test_a_reset_forgets_the_cache(sim: Device) -> None:
    stepper, row = started(sim)
    sim.executor.reset()
    step = stepper.step([(row, 1)])
    step.slot_init = (stepper._init(row, GREEDY),)
    assert run(sim.executor, step).status.tolist() == [RowStatus.NOT_FINITE]
    row.done = 0
    again = stepper.step([(row, len(row.ids))])
    assert run(sim.executor, again).status.tolist() == [RowStatus.OK]


def test_padding_is_nan_and_stays_with_itself(sim: Device) -> None:
    """Sampling a padded row shows the NaN that its own hidden states must be."""
    stepper = sim.stepper()
    step = padded(stepper.step([(Sequenced(0, prompt(9)), 9)]), Bucket(16, 4, 4))
    step.sample[:] = True
    step.slot_init += tuple(
        stepper._init(Sequenced(slot, []), GREEDY) for slot in step.slots[1:].tolist()
    )
    status = run(sim.executor, step).status.tolist()
    assert status == [RowStatus.OK, *[RowStatus.NOT_FINITE] * 3]
    assert all(cache.cache[:, :, 0].isnan().all() for cache in sim.backend.caches)
