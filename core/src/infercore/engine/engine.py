"""The step loop. `Engine.step` is the architecture: schedule, submit, result, update."""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from infercore.engine.block_manager import BlockManager
from infercore.engine.buckets import Buckets
from infercore.engine.limits import STEP_MASKS, AdmissionRules, EngineLimits
from infercore.engine.request import EngineStats, FinishReason, Output, Request
from infercore.engine.schedule import Schedule
from infercore.engine.scheduler import Scheduler
from infercore.engine.sequence import Sequence
from infercore.engine.step_builder import StepBuilder
from infercore.engine.step_times import BUILD, SCHEDULE, StepTimes
from infercore.engine.update import Updater
from infercore.errors import (
    ExecutorLost,
    GenerationFailed,
    InvalidRequest,
    RequestError,
    StepDropped,
    StepFailed,
)
from infercore.executor import Executor, Handle, KVGroups
from infercore.step import LateInputs, StepResult, UInt32

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Flight:
    """A submitted step without a result. `awaits_sample`: it is late and was not sampled yet.

    phase, submitted: what `StepTimes` tells steps apart by, and when it went, in its seconds.
    """

    plan: Schedule
    rows: int  # those of padding included
    handle: Handle
    awaits_sample: bool
    phase: int
    submitted: float


class _Refused(Handle):
    """A step that `submit` refused: it fails when its turn comes, like any other."""

    def __init__(self, error: StepFailed) -> None:
        self._error = error

    def sample(self, late: LateInputs) -> None:
        del late
        raise AssertionError("a refused step awaits no sampling")

    def result(self, timeout: float | None = None) -> StepResult:
        del timeout
        raise self._error


class Engine:
    """Continuous batching over one executor, from one thread.

    executor: loaded, its KV allocated and its buckets warm. groups: what `load` returned.
    num_blocks: what `allocate_kv` got. eos_ids: end a request unless it ignores them.
    buckets: shapes that `warm_up` warmed; None = the executor takes any shape.
    clock: the clock of `Request.arrival`, in seconds.

    Raises UnsupportedModel for KV groups that it cannot keep.
    """

    def __init__(
        self,
        executor: Executor,
        groups: KVGroups,
        num_blocks: Mapping[str, int],
        limits: EngineLimits,
        *,
        eos_ids: Collection[int],
        vocab_size: int,
        buckets: Buckets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        can = executor.capabilities()
        self._executor = executor
        self._clock = clock
        self._eos_ids = frozenset(eos_ids)
        self._vocab_size = vocab_size
        self._mask_words = -(-vocab_size // 32)
        self._late_masks = bool(can.late_inputs)
        self._depth = can.max_in_flight if limits.step_ahead else 1
        self._rules = AdmissionRules(limits, groups, num_blocks, vocab_size, can)
        self._blocks = BlockManager(groups, num_blocks, limits)
        self._stats = EngineStats(kv_blocks=self._blocks.num_blocks)
        self._scheduler = Scheduler(
            self._blocks,
            limits,
            self._stats,
            tokens_per_step=can.tokens_per_step,
            late_masks=self._late_masks,
        )
        self._times = StepTimes()
        self._updater = Updater(self._scheduler, self._stats)
        self._builder = StepBuilder(
            self._blocks, limits, can.max_in_flight, buckets or Buckets.of((), ())
        )
        self._flights: deque[_Flight] = deque()
        self._live: dict[int, Sequence] = {}
        self._outputs: list[Output] = []

    # -- requests -------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request; every one that was queued gets exactly one output with a reason.

        Resumed requests (output_ids, attempt > 0) pass the queue's limit and go ahead of new ones.
        Raises InvalidRequest if it could not run even alone, Overloaded if the queue is full.
        """
        if request.request_id in self._live:
            raise InvalidRequest(f"request {request.request_id} is already running")
        self._rules.check(request)
        now = self._clock()
        if not (request.attempt or request.output_ids):
            self._scheduler.require_room(len(request.prompt_ids), now)
        seq = Sequence(request, self._rules.max_len(request), self._eos_ids, now)
        self._live[seq.request_id] = seq
        seq.finish_reason = seq.ending() if request.output_ids else None
        if seq.is_finished:  # an earlier attempt got as far as the end
            self._outputs.append(Output(seq.request_id, finish_reason=seq.finish_reason))
            return
        self._scheduler.add(seq)

    def abort(self, request_id: int) -> None:
        """End a request; its last output, with reason ABORT, comes with the next step.

        Ids that are not live are ignored: the request may have ended meanwhile.
        """
        seq = self._live.get(request_id)
        if seq is not None and not seq.is_finished:
            self._scheduler.finish(seq, FinishReason.ABORT)
            self._outputs.append(Output(request_id, finish_reason=FinishReason.ABORT))

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._live or self._flights or self._outputs)

    def stats(self) -> EngineStats:
        """A copy of the counters and gauges, as of now."""
        return replace(
            self._stats,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_blocks_used=self._blocks.num_used,
            padded_tokens=self._builder.padded_tokens,
            joined_steps=self._times.joined,
            phase_failures=tuple(self._times.failed),
            prompts_per_step=tuple(self._times.prompts),
            step_counts=self._times.counts,
            step_seconds=self._times.seconds,
        )

    # -- the loop -------------------------------------------------------------------------------

    def step(self) -> list[Output]:
        """Submit a step, then bring in the one before it; where nothing runs ahead, that one.

        Raises ExecutorLost if only a restart helps; nothing can be asked of the engine then.
        """
        began, waited = time.perf_counter(), self._stats.wait_seconds
        plan = self._scheduler.schedule(self._clock(), ahead=bool(self._flights))
        if plan is not None:
            self._submit(plan, time.perf_counter() - began)
        self._sample_first()
        if self._flights and (plan is None or len(self._flights) == self._depth):
            self._retire(self._flights.popleft())
            self._sample_first()
        waited -= self._stats.wait_seconds
        self._stats.own_seconds += time.perf_counter() - began + waited
        return self._take_outputs()

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        for output in outputs:
            if output.finish_reason is not None:
                self._live.pop(output.request_id, None)
        return outputs

    def _submit(self, plan: Schedule, scheduling: float) -> None:
        began, phase = time.perf_counter(), self._times.phase_of(plan)
        rows = plan.constrained_rows()
        late = bool(rows) and self._late_masks
        step = self._builder.build(plan, late=late)
        if rows and not late:
            step.extras = {STEP_MASKS: self._mask_all(plan, rows, step.num_rows)}
        submitted = time.perf_counter()
        self._times.observe(phase, SCHEDULE, scheduling)
        self._times.observe(phase, BUILD, submitted - began)
        try:
            handle = self._timed(lambda: self._executor.submit(step))
        except StepFailed as error:
            refused = _Refused(error)
            self._flights.append(_Flight(plan, step.num_rows, refused, False, phase, submitted))
            while self._flights:  # what was submitted before it still counts
                self._sample_first()
                self._retire(self._flights.popleft())
        else:
            self._flights.append(_Flight(plan, step.num_rows, handle, late, phase, submitted))
            self._stats.steps += 1

    def _sample_first(self) -> None:
        """Give a late step its inputs, once nothing unresolved lies before it."""
        if not self._flights or not self._flights[0].awaits_sample:
            return
        flight = self._flights[0]
        rows, bitmask = self._masks(flight.plan, flight.plan.constrained_rows())
        drop = np.ones(flight.rows, np.bool_)
        drop[: len(flight.plan.seqs)] = [seq.is_finished for seq in flight.plan.seqs]
        late = LateInputs(np.array(rows, np.int32), bitmask, drop)
        flight.awaits_sample = False
        self._timed(lambda: flight.handle.sample(late))

    def _retire(self, flight: _Flight) -> None:
        """Result and update of the step that was submitted first."""
        try:
            result = self._timed(flight.handle.result)
        except StepFailed as error:
            self._times.failed[flight.phase] += 1
            self._drop_flights()
            self._scheduler.roll_back(flight.plan)
            self._recover(flight.plan, error)
        else:
            executed = time.perf_counter()
            self._require_sound(flight.plan, result)
            self._outputs += self._updater.update(flight.plan, result)
            self._times.retired(flight.phase, flight.submitted, executed, time.perf_counter())

    def _require_sound(self, plan: Schedule, result: StepResult) -> None:
        """Raises ExecutorLost for a result that no working executor gives: nothing else is safe."""
        tokens = result.tokens[: len(plan.seqs)]
        if result.step_id != plan.step_id:
            fault = f"answered step {result.step_id}"
        elif tokens.dtype != np.int32 or tokens.min() < 0 or tokens.max() >= self._vocab_size:
            fault = f"gave tokens that are none of its {self._vocab_size}"
        else:
            return
        raise ExecutorLost(f"in step {plan.step_id} the executor {fault}; restart the engine")

    def _timed(self, call: Callable[[], _Result]) -> _Result:
        began = time.perf_counter()
        try:
            return call()
        finally:
            self._stats.wait_seconds += time.perf_counter() - began

    # -- masks ----------------------------------------------------------------------------------

    def _masks(self, plan: Schedule, rows: list[int]) -> tuple[list[int], UInt32]:
        """Masks of the rows that are still live; a grammar that fails ends its request."""
        live = [row for row in rows if not plan.seqs[row].is_finished]
        bitmask = np.zeros((len(live), self._mask_words), np.uint32)
        for row, words in zip(live, bitmask, strict=True):
            seq = plan.seqs[row]
            assert seq.constraint is not None
            try:
                seq.constraint.fill(words)
            except RequestError as error:
                self._outputs.append(self._updater.fail(seq, error))
        return live, bitmask

    def _mask_all(self, plan: Schedule, rows: list[int], num_rows: int) -> UInt32:
        masked, bitmask = self._masks(plan, rows)
        everything: UInt32 = np.full((num_rows, self._mask_words), 2**32 - 1, np.uint32)
        everything[masked] = bitmask
        return everything

    # -- failures -------------------------------------------------------------------------------

    def _drop_flights(self) -> None:
        """Steps after a failed one end too, and count for nothing."""
        while self._flights:
            flight = self._flights.popleft()
            with suppress(StepDropped, StepFailed):
                if flight.awaits_sample:
                    flight.handle.sample(self._nothing_wanted(flight.rows))
                flight.handle.result()
            self._scheduler.roll_back(flight.plan)

    def _nothing_wanted(self, rows: int) -> LateInputs:
        no_masks = np.zeros((0, self._mask_words), np.uint32)
        return LateInputs(np.zeros(0, np.int32), no_masks, np.ones(rows, np.bool_))

    def _recover(self, plan: Schedule, error: StepFailed) -> None:
        """Nothing is in flight: end who is to blame, resume everyone else."""
        self._stats.failed_steps += 1
        for seq in self._scheduler.quarantine.blame(plan, error):
            why = GenerationFailed(f"request {seq.request_id}: its step failed: {error}")
            self._outputs.append(self._updater.fail(seq, why))
        if not error.kv_intact:
            self._executor.reset()
            self._scheduler.restart()
