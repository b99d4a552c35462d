"""The Executor that runs core's decoder on a torch Backend.

One thread does all of the device's work, in the order of the calls, so that the engine prepares
the next step while this one runs, and a step may wait for its late inputs without blocking it.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from infercore.backend import Backend
from infercore.capabilities import Capabilities
from infercore.errors import ExecutorLost, StepDropped, StepFailed
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
from infercore.worker.rehearsal import rehearsal

T = TypeVar("T")


class StepHandle(Handle):
    """A step in the device's thread. `on_failure` hears of a StepFailed when the engine does."""

    def __init__(
        self,
        future: "Future[StepResult]",
        late: "Future[LateInputs] | None",
        on_failure: Callable[[], None],
    ) -> None:
        self._future = future
        self._late = late
        self._on_failure = on_failure

    def sample(self, late: LateInputs) -> None:
        assert self._late is not None, "the step was submitted with late=False"
        self._late.set_result(late)

    def result(self, timeout: float | None = None) -> StepResult:
        try:
            return self._future.result(timeout)
        except StepFailed:
            self._on_failure()
            raise


class TorchExecutor(Executor):
    """Drives a Backend. Steps fail as a whole: torch does not say which row was at fault."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._thread = ThreadPoolExecutor(1, "executor", initializer=_enter_thread)
        self._era = 0  # counts failures that the engine has heard of
        self._failed_era = -1
        self._runner: ModelRunner | None = None

    @classmethod
    def probe(cls) -> Probe:
        """Whether torch is installed; the hardware is for the Backend's own `probe` to find."""
        return Probe(True, devices=(f"torch {torch.__version__}",))

    def capabilities(self) -> Capabilities:
        return self.backend.capabilities()

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        def load() -> ModelRunner:
            self.backend.configure(config)
            return ModelRunner(self.backend, spec, weights, self.backend.config, progress)

        self._runner = self._call(load)
        return self._runner.groups

    @property
    def runner(self) -> ModelRunner:
        assert self._runner is not None, "no model is loaded"
        return self._runner

    def memory(self) -> Memory:
        return self._call(self._measure)

    def _measure(self) -> Memory:
        """Every sequence's blocks are block 0 here, so no real cache is needed."""
        runner, backend = self.runner, self.backend
        runner.allocate([1] * len(runner.groups))
        total, before = backend.memory()
        backend.peak_memory()
        self._rehearse()
        peak = backend.peak_memory()
        weights = runner.weight_bytes
        return Memory(total, weights, max(0, before - weights) + max(0, peak - before))

    def _rehearse(self) -> None:
        """Run the largest step that the configuration allows."""
        step = rehearsal(self.backend.config, len(self.runner.groups))
        self.runner.finish(self.runner.forward(step), None)
        self.backend.synchronize()
        self.runner.reset()

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        counts = [num_blocks[group.name] for group in self.runner.groups]
        self._call(lambda: self.runner.allocate(counts))

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> None:
        """The rehearsal of `memory` warmed torch itself; what is left is the backend's."""
        del deadline
        progress("warm up", 0, len(buckets))
        self._call(lambda: self.runner.compile(buckets))
        progress("warm up", len(buckets), len(buckets))

    def submit(self, step: Step) -> Handle:
        if step.extras:
            raise StepFailed(
                f"step {step.step_id} carries {', '.join(sorted(step.extras))}, which "
                f"{self.backend.name} does not know",
                retryable=False,
            )
        late: Future[LateInputs] | None = Future() if step.late else None
        future = self._thread.submit(self._step, step, late, self._era)
        return StepHandle(future, late, self._heard)

    def _step(self, step: Step, late: "Future[LateInputs] | None", era: int) -> StepResult:
        if era == self._failed_era:
            raise StepDropped(f"step {step.step_id} followed one that failed")
        try:
            forward = self.runner.forward(step)
            inputs = None if late is None else late.result()
            return self.runner.finish(forward, inputs)
        except (RuntimeError, MemoryError) as error:  # torch reports out of memory as the former
            self._failed_era = era
            raise StepFailed(
                f"step {step.step_id} ({step.num_rows} rows, {step.num_tokens} tokens) failed on "
                f"{self.backend.name}: {error}"
            ) from error

    def _heard(self) -> None:
        self._era = self._failed_era + 1

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        index = [g.name for g in self.runner.groups].index(group)
        future = self._thread.submit(self._copy, index, src, dst, direction)
        return StepHandle(future, None, self._heard)

    def _copy(self, group: int, src: Int32, dst: Int32, direction: CopyDirection) -> StepResult:
        self.runner.caches[group].copy_blocks(src, dst, direction)
        return _NOTHING

    def health(self) -> None:
        try:
            self._call(self.backend.synchronize)
        except RuntimeError as error:
            raise ExecutorLost(
                f"{self.backend.name} does not answer ({error}); restart the engine"
            ) from error

    def reset(self) -> None:
        self._call(self.runner.reset)

    def shutdown(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._runner = None

    def _call(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()


def _enter_thread() -> None:
    # as a context manager it would end with this function; the thread never leaves it
    torch.inference_mode().__enter__()


_NOTHING = StepResult(
    step_id=-1,
    tokens=np.zeros((0, 1), np.int32),
    n_tokens=np.zeros(0, np.int32),
    status=np.zeros(0, np.uint8),
    logprobs=np.zeros((0, 1), np.float32),
    top_ids=np.zeros((0, 1, 0), np.int32),
    top_logprobs=np.zeros((0, 1, 0), np.float32),
)
