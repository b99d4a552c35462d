"""The Executor that runs core's decoder on a torch Backend.

A rank's thread does all of its device's work, in the order of the calls, so that the engine
prepares the next step while this one runs, and a step may wait for its late inputs without
blocking it. Ranks that share a model get the same calls; all must succeed, and the first answers.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch

from infercore.backend import Backend
from infercore.capabilities import Capabilities
from infercore.errors import ExecutorLost, StepDropped, StepFailed, UnsupportedModel
from infercore.executor import (
    Bucket,
    CopyDirection,
    Executor,
    ExecutorConfig,
    Handle,
    KVGroups,
    Memory,
    Probe,
    Progress,
    Weights,
)
from infercore.model_spec import ModelSpec
from infercore.step import Int32, LateInputs, Step, StepResult
from infercore.worker.model_runner import ModelRunner
from infercore.worker.parallel import require_ranks
from infercore.worker.rank import Rank, outcome
from infercore.worker.thread_group import THREADS

T = TypeVar("T")


class StepHandle(Handle):
    """A step in the ranks' threads. `on_failure` hears of a StepFailed when the engine does."""

    def __init__(
        self,
        futures: "Sequence[Future[StepResult]]",
        late: "Future[LateInputs] | None",
        on_failure: Callable[[], None],
    ) -> None:
        self._futures = futures
        self._late = late
        self._on_failure = on_failure

    def sample(self, late: LateInputs) -> None:
        assert self._late is not None, "the step was submitted with late=False"
        self._late.set_result(late)

    def result(self, timeout: float | None = None) -> StepResult:
        try:
            return outcome(self._futures, timeout)
        except StepFailed:
            self._on_failure()
            raise


class TorchExecutor(Executor):
    """Drives a Backend. Steps fail as a whole: torch does not say which row was at fault."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._ranks = [Rank(backend)]
        self._era = 0  # counts failures that the engine has heard of
        self._failed_era = -1
        self._late: deque[Future[LateInputs]] = deque(maxlen=2)  # most steps that may be in flight
        self._aborted = False  # the ranks' group may be, by a failure that the engine has heard of

    @classmethod
    def probe(cls) -> Probe:
        """Whether torch is installed; the hardware is for the Backend's own `probe` to find."""
        return Probe(True, devices=(f"torch {torch.__version__}",))

    def capabilities(self) -> Capabilities:
        return self.backend.capabilities()

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        if config.ranks != 1:
            require_ranks(spec, config.ranks)
            self._add_ranks(config.ranks)
        # one after another, since a checkpoint may not be thread-safe
        for number, rank in enumerate(self._ranks):
            told = partial(_of_ranks, progress, number, config.ranks)
            load = partial(Rank.load, spec=spec, weights=weights, config=config, progress=told)
            rank.submit(load).result()
        return self.runner.groups

    def _add_ranks(self, ranks: int) -> None:
        if THREADS not in self.capabilities().collectives:
            raise UnsupportedModel(
                f"{self.backend.name} serves a model on one rank only, and {ranks} are asked for; "
                "use one rank, or a backend that joins several"
            )
        self._ranks += [Rank(backend) for backend in self.backend.peers(ranks)[1:]]

    @property
    def runner(self) -> ModelRunner:
        """The first rank's."""
        return self._ranks[0].runner

    def memory(self) -> Memory:
        """Of the rank that has least left."""
        return min(self._call(Rank.measure), key=lambda memory: memory.free)

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        counts = [num_blocks[group.name] for group in self.runner.groups]
        self._call(lambda rank: rank.runner.allocate(counts))

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        """The rehearsal of `memory` warmed torch itself; what is left is the backend's."""
        del deadline
        progress("warm up", 0, len(buckets))
        self._call(lambda rank: rank.runner.compile(buckets))
        progress("warm up", len(buckets), len(buckets))
        return len(buckets)

    def submit(self, step: Step) -> Handle:
        if step.extras:
            raise StepFailed(
                f"step {step.step_id} carries {', '.join(sorted(step.extras))}, which "
                f"{self.backend.name} does not know",
                retryable=False,
            )
        late: Future[LateInputs] | None = Future() if step.late else None
        if late is not None:
            self._late.append(late)
        era = self._era
        futures = self._submit(lambda rank: self._step(rank, step, late, era))
        return StepHandle(futures, late, self._heard)

    def _step(
        self, rank: Rank, step: Step, late: "Future[LateInputs] | None", era: int
    ) -> StepResult:
        if era <= self._failed_era:
            raise StepDropped(f"step {step.step_id} followed one that failed")
        with rank.together():
            try:
                return rank.step(step, late)
            except (RuntimeError, MemoryError) as error:  # out of memory is the former in torch
                self._failed_era = era
                raise StepFailed(
                    f"step {step.step_id} ({step.num_rows} rows, {step.num_tokens} tokens) failed "
                    f"on {self.backend.name}: {error}"
                ) from error

    def _heard(self) -> None:
        self._era = self._failed_era + 1
        self._aborted = True

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        index = [g.name for g in self.runner.groups].index(group)

        def copy(rank: Rank) -> StepResult:
            rank.runner.caches[index].copy_blocks(src, dst, direction)
            return StepResult.blank(-1, rows=0)

        return StepHandle(self._submit(copy), None, self._heard)

    def health(self) -> None:
        try:
            self._call(lambda rank: rank.backend.synchronize())
        except RuntimeError as error:
            raise ExecutorLost(
                f"{self.backend.name} does not answer ({error}); restart the engine"
            ) from error

    def reset(self) -> None:
        self._call(lambda rank: rank.runner.reset())

    def shutdown(self) -> None:
        self._failed_era = self._era  # what has not begun is dropped, by all ranks alike
        for late in self._late:
            if not late.done():
                late.set_exception(
                    StepDropped("the executor was shut down before late inputs came")
                )
        for rank in self._ranks:
            rank.abort()
        for rank in self._ranks:
            rank.close()

    def _call(self, function: Callable[[Rank], T]) -> list[T]:
        """What each rank returns."""
        futures = self._submit(function)
        try:
            outcome(futures)
        except BaseException:
            self._aborted = True
            raise
        return [future.result() for future in futures]

    def _submit(self, function: Callable[[Rank], T]) -> "list[Future[T]]":
        """The same work for every rank, which meet first if one of them failed."""
        if self._aborted:
            self._aborted = False
            for rank in self._ranks:
                rank.submit(Rank.recover)
        return [rank.submit(function) for rank in self._ranks]


def _of_ranks(progress: Progress, rank: int, ranks: int, phase: str, done: int, total: int) -> None:
    """A rank's progress as a part of that of all, which come one after another."""
    progress(phase, rank * total + done, ranks * total)
