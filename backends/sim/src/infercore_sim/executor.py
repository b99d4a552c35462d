"""The simulated device: its thread, its rules and its faults, around core's executor."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from infercore.capabilities import Capabilities
from infercore.errors import ExecutorLost, MemoryBudgetError, StepDropped, StepFailed
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
from infercore.step import Bool, Int32, LateInputs, Step, StepResult
from infercore_sim.faults import spoilt
from infercore_sim.flight import Copying, Flight
from infercore_sim.graphs import Graphs
from infercore_sim.lookahead import Lookahead
from infercore_sim.memory import OutOfMemory
from infercore_sim.options import Fault
from infercore_sim.rules import check_step, followable
from infercore_sim.shapes import Shapes

if TYPE_CHECKING:
    from infercore_sim.backend import SimBackend

T = TypeVar("T")


class SimExecutor(Executor):
    """Runs steps in order in a thread of its own, one at a time, on `inner`.

    A broken contract raises RuleBroken where it shows. `shapes` tells what was compiled, `graphs`
    what was captured and what the host had to launch.
    """

    def __init__(self, backend: "SimBackend", inner: Executor) -> None:
        self.backend = backend
        self.inner = inner
        can = backend.capabilities()
        self.shapes = Shapes(can.static_dimensions)
        self.graphs = Graphs(can_capture=bool(can.graph_capture))
        self._lookahead = Lookahead()
        self._submitted = 0
        self._followable: Bool = np.zeros(0, np.bool_)  # in the step submitted last
        self._unresolved: list[Flight] = []
        self._era = 0  # counts failures that the engine has heard of
        self._failed_era = -1
        self._gone: Future[str] = Future()  # why
        self._stopped: Future[None] = Future()
        self._thread = ThreadPoolExecutor(1, "sim-device")

    @classmethod
    def probe(cls) -> Probe:
        """Always there; the Backend's own looks for torch."""
        return Probe(True, devices=("a simulated device",))

    def capabilities(self) -> Capabilities:
        return self.backend.capabilities()

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        """Also raises MemoryBudgetError, as `memory` and `allocate_kv` do."""
        return self._fitting("weights", lambda: self.inner.load(spec, weights, config, progress))

    def memory(self) -> Memory:
        return self._fitting("the largest step's workspace", self.inner.memory)

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        self._fitting("the KV cache", lambda: self.inner.allocate_kv(num_blocks))

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        count = self.shapes.warm_up(buckets, deadline, progress)
        self._call(lambda: self.inner.warm_up(buckets[:count], deadline, lambda *_: None))
        self.graphs.capture(buckets[:count])
        return count

    def submit(self, step: Step) -> Handle:
        unknown = sorted(name for name in step.extras if not self.capabilities().extras.get(name))
        if unknown:
            raise StepFailed(
                f"step {step.step_id} carries {', '.join(unknown)}, which sim does not know",
                retryable=False,
            )
        unresolved = [flight.step for flight in self._unresolved]
        check_step(step, self._followable, unresolved, self.capabilities())
        self.shapes.check(step)
        fault = self.backend.options.faults.get(self._submitted)
        flight = Flight(step, fault, self._era, self._return)
        self._submitted += 1
        self._followable = followable(step)
        self._unresolved.append(flight)
        flight.done = self._thread.submit(self._run, flight)
        return flight

    def _run(self, flight: Flight) -> StepResult:
        if flight.era == self._failed_era:
            raise StepDropped(f"step {flight.step.step_id} followed one that failed")
        try:
            return self._compute(flight)
        except StepFailed:
            self._failed_era = flight.era
            raise

    def _compute(self, flight: Flight) -> StepResult:
        self._check_device()
        if flight.fault in (Fault.HANG, Fault.LOST):
            self._go(flight)
        flight.check_arrays()
        self.backend.sabotage(flight.fault)
        before = self.backend.operations
        step = self._lookahead.begun(flight.step)
        handle = self.inner.submit(step)
        if step.late:
            handle.sample(self._late_inputs(flight))
        size = self.backend.config.block_size
        result = self._lookahead.finished(
            step, handle.result(), size, lambda more: self.inner.submit(more).result()
        )
        self.graphs.launch(flight.step, self.backend.operations - before)
        return spoilt(result, flight.fault)

    def _late_inputs(self, flight: Flight) -> LateInputs:
        _wait_for_any(flight.late, self._stopped)
        if flight.late.done():
            return flight.late.result()
        # a shutdown does not wait for an engine that will not sample any more
        no_masks = np.zeros((0, 0), np.uint32)
        return LateInputs(np.zeros(0, np.int32), no_masks, np.ones(flight.step.num_rows, np.bool_))

    def _go(self, flight: Flight) -> None:
        """The device goes, for good."""
        hangs = flight.fault is Fault.HANG
        what = "hung" if hangs else "lost a rank"
        self._gone.set_result(f"it {what} in step {flight.step.step_id}, on demand")
        if hangs:
            self._stopped.result()
        self._check_device()

    def _check_device(self) -> None:
        if self._gone.done():
            why = self._gone.result()
            raise ExecutorLost(f"the simulated device is gone: {why}; restart the engine")

    def _return(self, flight: Flight) -> None:
        self._unresolved.remove(flight)
        if isinstance(flight.done.exception(), StepFailed):
            self._era = self._failed_era + 1

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        def copy() -> StepResult:
            self._check_device()
            return self.inner.copy_blocks(group, src, dst, direction).result()

        return Copying(self._thread.submit(copy))

    def health(self) -> None:
        """Waits for what was submitted, but not for a device that hangs."""
        self._call(self.inner.health)
        self._check_device()

    def reset(self) -> None:
        self._call(self.inner.reset)
        self.backend.forget()

    def shutdown(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)
            self._thread.shutdown(wait=True)
            self.inner.shutdown()

    def _call(self, function: Callable[[], T]) -> T:
        done = self._thread.submit(function)
        _wait_for_any(done, self._gone)
        self._check_device()
        return done.result()

    def _fitting(self, what: str, function: Callable[[], T]) -> T:
        try:
            return self._call(function)
        except OutOfMemory as error:
            raise MemoryBudgetError(
                f"{what} of this model: {error}. Give the device more memory (memory-N in MiB), "
                "or load less: a smaller model, smaller steps, fewer blocks"
            ) from error


def _wait_for_any(*futures: "Future[Any]") -> None:
    wait(futures, return_when=FIRST_COMPLETED)
