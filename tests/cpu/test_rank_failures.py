"""One rank fails, and nobody waits for it; and the group of threads by itself."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infercore.errors import ExecutorLost, StepDropped, StepFailed
from infercore.worker.rank import Rank
from infercore.worker.sampler import Sampler
from infercore.worker.thread_group import ThreadGroup
from infercore.worker.torch_executor import TorchExecutor
from model_runs import BLOCKS, prompt
from rank_runs import FaultyOps, first_token, running
from stepper import Sequenced, Stepper
from tiny_models import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, "llama")
    return path


def ops_of(executor: TorchExecutor, rank: int) -> FaultyOps:
    ops = executor._ranks[rank].backend.ops()
    assert isinstance(ops, FaultyOps)
    return ops


@pytest.mark.parametrize("countdown", [0, 3, 7])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_failing_rank_fails_the_step_for_all(folder: Path, rank: int, countdown: int) -> None:
    """Those that wait for it are released, the step behind is dropped, then all goes on."""
    with running(folder, 2) as executor:
        stepper = Stepper(executor.runner.groups, BLOCKS)
        expected = [first_token(executor, stepper, 0, length) for length in (9, 20)]
        for _ in range(2):  # failures do not add up
            ops = ops_of(executor, rank)
            ops.countdown, ops.fault = countdown, RuntimeError("out of memory")
            steps = [stepper.step([(Sequenced(slot, prompt(5)), 5)]) for slot in (1, 2)]
            handles = [executor.submit(step) for step in steps]
            with pytest.raises(StepFailed, match="1 rows, 5 tokens.*out of memory"):
                handles[0].result(30)
            with pytest.raises(StepDropped):
                handles[1].result(30)
        assert [first_token(executor, stepper, 3, length) for length in (9, 20)] == expected


class FailingSampler(Sampler):
    """Fails once: after its rank's last word to the others, who go on to the next step."""

    failed = False

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        if not self.failed:
            self.failed = True
            raise RuntimeError("no memory to sample")
        return super().sample(*args, **kwargs)


def test_a_rank_that_fails_after_the_others_went_on(folder: Path) -> None:
    with running(folder, 2) as executor:
        stepper = Stepper(executor.runner.groups, BLOCKS)
        expected = first_token(executor, stepper, 0, 9)
        runner = executor._ranks[1].runner
        runner.sampler = FailingSampler(runner.spec.vocab_size, 8, runner.device)
        steps = [stepper.step([(Sequenced(slot, prompt(5)), 5)]) for slot in (1, 2)]
        handles = [executor.submit(step) for step in steps]
        with pytest.raises(StepFailed, match="no memory to sample"):
            handles[0].result(30)
        with pytest.raises(StepDropped):
            handles[1].result(30)
        assert first_token(executor, stepper, 3, 9) == expected


def test_a_lost_rank_is_told_as_it_is(folder: Path) -> None:
    with running(folder, 2) as executor:
        ops_of(executor, 1).fault = ExecutorLost("rank 1 fell off the bus")
        step = Stepper(executor.runner.groups, BLOCKS).step([(Sequenced(0, prompt(5)), 5)])
        with pytest.raises(ExecutorLost, match="fell off"):
            executor.submit(step).result(30)


def test_a_failed_measurement_releases_the_ranks_and_can_be_repeated(folder: Path) -> None:
    with running(folder, 2) as executor:
        ops_of(executor, 1).fault = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            executor.memory()
        assert executor.memory().weights > 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_shutdown_joins_every_thread_also_while_ranks_wait(folder: Path, ranks: int) -> None:
    """The last rank is held up, the others wait for it in a sum; what has not begun is dropped."""
    before = set(threading.enumerate())
    entered = threading.Event()
    with running(folder, ranks) as executor:

        def held_up(rank: Rank) -> None:
            del rank
            entered.set()
            while executor._failed_era < executor._era:  # until the shutdown has begun
                time.sleep(0.001)

        executor._ranks[-1].submit(held_up)
        entered.wait(30)
        step = Stepper(executor.runner.groups, BLOCKS).step([(Sequenced(0, prompt(5)), 5)])
        handle = executor.submit(step)
        with pytest.raises(TimeoutError):
            handle.result(0.05)
    with pytest.raises(StepDropped):
        handle.result(30)
    assert {t for t in threading.enumerate() if t.name.startswith("rank")} <= before


@pytest.mark.parametrize("ranks", [1, 2])
def test_shutdown_waits_for_no_late_inputs(folder: Path, ranks: int) -> None:
    with running(folder, ranks) as executor:
        stepper = Stepper(executor.runner.groups, BLOCKS)
        handle = executor.submit(stepper.step([(Sequenced(0, prompt(5)), 5)], late=True))
        with pytest.raises(TimeoutError):
            handle.result(0.05)
    with pytest.raises(StepDropped):
        handle.result(30)


def together(size: int, work: Callable[[Any], Any]) -> list[Any]:
    """What each member's thread made of `work`: its result or its error."""
    group = ThreadGroup(size)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(group.member(rank))
        except (StepDropped, ValueError) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_sums_are_in_the_order_of_the_ranks() -> None:
    """In another order these would not cancel."""
    values = [1e8, -1e8, 1.0, 3e-8]
    sums = together(4, lambda member: member.all_reduce(torch.tensor([values[member.rank]])))
    assert [float(s) for s in sums] == [float(np.float32(1.0) + np.float32(3e-8))] * 4


def test_a_gather_joins_along_any_dimension_and_leaves_its_input() -> None:
    def work(member: Any) -> Any:
        x = torch.full((2, 1), float(member.rank))
        gathered = [member.all_gather(x, dim) for dim in (0, 1)]
        x.fill_(-1)  # no other rank reads it any more
        return gathered

    for rows, columns in together(3, work):
        assert rows.flatten().tolist() == [0, 0, 1, 1, 2, 2]
        assert columns.tolist() == [[0, 1, 2]] * 2


def test_an_aborted_group_recovers() -> None:
    def work(member: Any) -> Any:
        if member.rank == 1:
            member.abort()
        else:
            with pytest.raises(StepDropped, match=f"rank {member.rank} was released"):
                member.all_reduce(torch.ones(1))
            with pytest.raises(StepDropped):  # until it has recovered
                member.all_reduce(torch.ones(1))
        member.recover()
        return member.all_reduce(torch.ones(1))

    assert [float(x) for x in together(3, work)] == [3, 3, 3]
