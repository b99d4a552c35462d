"""One rank of an executor: a backend, its model, and the thread that does all of its work."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from infercore.backend import Backend, Collective
from infercore.errors import StepDropped
from infercore.executor import ExecutorConfig, Memory, Progress, Weights
from infercore.model_spec import ModelSpec
from infercore.rehearsal import rehearsal
from infercore.step import LateInputs, Step, StepResult
from infercore.worker.model_runner import ModelRunner

T = TypeVar("T")


class Rank:
    """Does what it is told, in the order of the calls. collective: None if it is the only one."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.collective: Collective | None = None
        self._thread = ThreadPoolExecutor(1, f"rank{backend.rank}", initializer=_enter_thread)
        self._runner: ModelRunner | None = None

    @property
    def runner(self) -> ModelRunner:
        assert self._runner is not None, "no model is loaded"
        return self._runner

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> None:
        self.backend.configure(config)
        config = self.backend.config
        if config.ranks > 1:
            self.collective = self.backend.collective(config.ranks)
        self._runner = ModelRunner(self.backend, spec, weights, config, progress, self.collective)

    def step(self, step: Step, late: "Future[LateInputs] | None") -> StepResult:
        forward = self.runner.forward(step)
        inputs = None if late is None else late.result()
        return self.runner.finish(forward, inputs)

    def measure(self) -> Memory:
        """Every sequence's blocks are block 0 here, so no real cache is needed."""
        runner, backend = self.runner, self.backend
        runner.allocate([1] * len(runner.groups))
        total, before = backend.memory()
        backend.peak_memory()
        with self.together():
            self._rehearse()
        peak = backend.peak_memory()
        weights = runner.weight_bytes
        return Memory(total, weights, max(0, before - weights) + max(0, peak - before))

    def _rehearse(self) -> None:
        """Run the largest step that the configuration allows."""
        runner = self.runner
        step = rehearsal(runner.config, len(runner.groups))
        runner.finish(runner.forward(step), None)
        self.backend.synchronize()
        runner.reset()

    def submit(self, function: "Callable[[Rank], T]") -> "Future[T]":
        return self._thread.submit(function, self)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around work for which ranks wait for each other: a failure releases the others."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        if self.collective is not None:
            self.collective.abort()

    def recover(self) -> None:
        if self.collective is not None:
            self.collective.recover()

    def close(self) -> None:
        """Join the thread, once it did what it was told, and let the model go."""
        self._thread.shutdown(wait=True)
        self._runner = None


def outcome(futures: "Sequence[Future[T]]", timeout: float | None = None) -> T:
    """What the first rank returned, once all have ended; or the failure that stopped the others.

    timeout: seconds. Raises TimeoutError if a rank has not ended by then.
    """
    if len(futures) > 1:
        _, running = wait(futures, timeout)
        if running:
            raise TimeoutError
        failures = [error for future in futures if (error := future.exception()) is not None]
        if failures:
            raise next((e for e in failures if not isinstance(e, StepDropped)), failures[0])
    return futures[0].result(timeout)


def _enter_thread() -> None:
    # as a context manager it would end with this function; the thread never leaves it
    torch.inference_mode().__enter__()
