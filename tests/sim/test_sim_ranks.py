"""Ranks of the simulated device: each has its own memory and cache, and all keep the rules."""

from pathlib import Path

import numpy as np
import pytest

from infercore.errors import MemoryBudgetError, StepFailed
from infercore.sampling import RowStatus
from infercore_sim.memory import MIB
from model_runs import prompt
from sim_device import DYNAMIC, Device, device, run
from stepper import GREEDY, Sequenced


def answer(sim: Device) -> tuple[list[int], list[float]]:
    """Five greedy tokens and their log-probabilities."""
    stepper, row = sim.stepper(), Sequenced(0, prompt(30))
    logprobs = []
    for _ in range(5):
        result = run(sim.executor, stepper.step([(row, len(row.ids) - row.done)], logprobs=0))
        row.ids.append(int(result.tokens[0, 0]))
        logprobs.append(float(result.logprobs[0, 0]))
    return row.ids, logprobs


def test_two_ranks_say_what_one_says(folder: Path) -> None:
    answers = []
    for ranks in (1, 2):
        with device(folder, ranks=ranks) as sim:
            answers.append(answer(sim))
    (ids, logprobs), (others, other_logprobs) = answers
    assert ids == others
    np.testing.assert_allclose(logprobs, other_logprobs, atol=1e-5)


def test_each_rank_has_its_own_ceiling(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},memory-8") as one:
        alone = one.executor.memory()
    with device(folder, f"{DYNAMIC},memory-8", ranks=2) as two:
        shared = two.executor.memory()
        with pytest.raises(MemoryBudgetError, match="8 MiB"):
            two.executor.allocate_kv({group.name: 10**6 for group in two.groups})
    assert shared.total == alone.total == 8 * MIB
    assert alone.weights / 2 < shared.weights < alone.weights


def test_a_fault_of_one_rank_fails_the_step_of_all(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},oom@1", ranks=2) as sim:
        stepper, row = sim.stepper(), Sequenced(0, prompt(20))
        run(sim.executor, stepper.step([(row, 19)]))
        step = stepper.step([(row, 1)])
        with pytest.raises(StepFailed, match="out of memory"):
            run(sim.executor, step)
        assert run(sim.executor, step).status.tolist() == [RowStatus.OK]


def test_a_reset_forgets_the_caches_of_all(folder: Path) -> None:
    with device(folder, ranks=2) as sim:
        stepper, row = sim.stepper(), Sequenced(0, prompt(20))
        run(sim.executor, stepper.step([(row, 19)]))
        sim.executor.reset()
        step = stepper.step([(row, 1)])
        step.slot_init = (stepper._init(row, GREEDY),)
        assert run(sim.executor, step).status.tolist() == [RowStatus.NOT_FINITE]
        assert all(cache.cache.isnan().any() for cache in sim.backend.caches)
