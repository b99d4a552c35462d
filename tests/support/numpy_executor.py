"""A whole Executor in NumPy: a toy model over a real paged cache, that tolerates no broken rule.

It computes a step when its result is asked for, as late as a device may, from the step's own
arrays. What it finds against the contract, it reports as an AssertionError that names the rule.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from faults import Fault
from infercore.capabilities import FULL, UNKNOWN, Capabilities, StaticDimension
from infercore.engine.limits import STEP_MASKS
from infercore.errors import StepDropped, StepFailed
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
from infercore.sampling import Choice, RowStatus, choose, log_softmax, top_logprobs
from infercore.step import Float32, Int32, LateInputs, SlotInit, Step, StepResult, UInt64
from step_rules import ARRAYS, check_blocks, check_shapes, unpadded
from toy_model import ToyModel, unpack

Masks: TypeAlias = dict[int, NDArray[np.bool_]]

_POISON = np.uint64(0xBADBADBADBADBAD)


@dataclass
class _Slot:
    init: SlotInit
    output: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.init.prompt_ids.tolist(), *self.output]


class _Unresolved(Handle):
    """A step in flight, with a copy of what its arrays were."""

    def __init__(self, executor: "NumpyExecutor", step: Step, number: int, rows: int) -> None:
        self.executor, self.step, self.number = executor, step, number
        self.rows = rows  # those of padding included
        self.copies = {name: getattr(step, name).copy() for name in ARRAYS}
        self.late: LateInputs | None = None
        self.dropped = False
        self.named = [set(table[table > 0].tolist()) for table in step.block_table]
        self.slots = set(step.slots.tolist())

    def sample(self, late: LateInputs) -> None:
        assert self.step.late, "sample() is for late steps"
        assert self.late is None, "sample() comes once"
        assert late.drop.shape == (self.rows,)
        assert late.drop[self.step.num_rows :].all(), "nobody wants what padding yields"
        self.late = late

    def result(self, timeout: float | None = None) -> StepResult:
        assert self.late is not None or not self.step.late, "a late step is sampled before result()"
        for name, copy in self.copies.items():
            same = np.array_equal(getattr(self.step, name), copy)
            assert same, f"rule (b): {name} of step {self.step.step_id} changed in flight"
        return self.executor.resolve(self)


class NumpyExecutor(Executor):
    """Steps of a `ToyModel`, checked against the rules of `infercore.executor` as they come.

    faults: what goes wrong, and when. `log` holds a copy of the rows of every step submitted, as
    (sequence slot, first position, number of tokens); `followed` counts tokens that were not known
    when their step was submitted.
    """

    def __init__(
        self,
        model: ToyModel = ToyModel(),  # noqa: B008 -- frozen
        *,
        block_size: int = 4,
        max_in_flight: int = 2,
        tokens_per_step: int = 1,
        late_inputs: bool = True,
        static: tuple[StaticDimension, ...] = (),
        faults: Sequence[Fault] = (),
    ) -> None:
        self.model, self.faults = model, faults
        self.groups = model.groups(block_size)
        self.log: list[list[tuple[int, int, int]]] = []
        self.followed = 0
        self._block_size = block_size
        self._can = Capabilities(
            dtypes=("float32",),
            block_sizes=(block_size,),
            static_dimensions=static,
            max_in_flight=max_in_flight,
            tokens_per_step=tokens_per_step,
            late_inputs=FULL if late_inputs else UNKNOWN,
            watermark=FULL,
            batch_invariant=FULL,
            prompt_logprobs=FULL,
            extras={} if late_inputs else {STEP_MASKS: FULL},
        )
        self._planned: set[Bucket] = set()
        self._unresolved: deque[_Unresolved] = deque()
        self._slots: dict[int, _Slot] = {}
        self._last: list[list[int]] = []  # tokens by row of the step resolved last
        self._lost = False  # the KV cache, until `reset`

    # -- the life of an executor ------------------------------------------------------------------

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, devices=("NumPy",))

    def capabilities(self) -> Capabilities:
        return self._can

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        """The toy model needs neither; its groups are what the engine must know."""
        return self.groups

    def memory(self) -> Memory:
        return Memory(total=2**20, weights=0, workspace=0)

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        sizes = [num_blocks[group.name] * self._block_size for group in self.groups]
        self._kv = [np.full((2, size), _POISON, np.uint64) for size in sizes]
        self._written = [np.zeros(size, np.bool_) for size in sizes]
        self._handed_out: list[set[int]] = [set() for _ in self.groups]

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        del deadline, progress
        self._planned.update(buckets)
        return len(buckets)

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        raise NotImplementedError("the engine copies no blocks yet")

    def health(self) -> None:
        pass

    def reset(self) -> None:
        assert not self._unresolved, "reset with steps in flight"
        self._lost = False
        self._slots.clear()
        for kv, written, handed_out in zip(self._kv, self._written, self._handed_out, strict=True):
            kv.fill(_POISON)
            written.fill(False)
            handed_out.clear()

    def shutdown(self) -> None:
        self._unresolved.clear()

    # -- submit: what a step promises -------------------------------------------------------------

    def submit(self, step: Step) -> Handle:
        assert not self._lost, "the KV cache is lost and was not reset"
        assert len(self._unresolved) < self._can.max_in_flight, "rule (a): too many in flight"
        unknown = set(step.extras) - set(self._can.extras)
        if unknown:
            raise StepFailed(f"unknown extras: {', '.join(sorted(unknown))}", retryable=False)
        rows = step.num_rows
        step = unpadded(step, self._planned, self._can)
        busy: set[int] = set().union(*(handle.slots for handle in self._unresolved))
        check_shapes(step, self._can, len(self.groups), busy)
        in_flight = [handle.named for handle in self._unresolved]
        check_blocks(step, self._block_size, self._handed_out, in_flight)
        counts = np.diff(step.query_start)
        spans = (step.slots.tolist(), (step.context_len - counts).tolist(), counts.tolist())
        self.log.append(list(zip(*spans, strict=True)))
        handle = _Unresolved(self, step, len(self.log) - 1, rows)
        for fault in self.faults:
            if fault.at_submit and fault.rows(step, handle.number):
                raise self._failure(fault, step, handle.number)
        self._unresolved.append(handle)
        self.followed += int((step.token_source >= 0).sum())
        return handle

    # -- resolve: what a step does ----------------------------------------------------------------

    def resolve(self, handle: _Unresolved) -> StepResult:
        """Run the oldest step in flight. Raises StepFailed or StepDropped."""
        if handle.dropped:
            raise StepDropped(f"step {handle.step.step_id} followed one that failed")
        assert self._unresolved[0] is handle, "results are asked for in order"
        step, late = self._unresolved.popleft().step, handle.late
        for g, blocks in enumerate(step.fresh_blocks):
            self._forget(g, blocks)
        for init in step.slot_init:
            self._slots[init.slot] = _Slot(init, init.output_ids.tolist())
        hidden = self._forward(step)
        sick: set[int] = set()
        for fault in self.faults:
            rows = fault.rows(step, handle.number)
            if fault.nan:
                sick.update(rows)
            elif rows and not fault.at_submit:
                raise self._failure(fault, step, handle.number)
        return self._sample(step, hidden, late, sick)

    def _failure(self, fault: Fault, step: Step, number: int) -> StepFailed:
        """What the step and those behind it wrote is garbage, unless it never began."""
        behind = [] if fault.at_submit else list(self._unresolved)
        for handle in behind:
            handle.dropped = True
            self._unresolved.popleft()
        for lost in () if fault.at_submit else (step, *(handle.step for handle in behind)):
            for g, mapping in enumerate(lost.slot_mapping):
                self._kv[g][:, mapping] = _POISON
                self._written[g][mapping] = False
            for slot in lost.slots.tolist():
                self._slots.pop(slot, None)  # it must be told anew what came before
        self._lost = not fault.kv_intact
        rows = fault.rows(step, number) if fault.named else None
        return StepFailed(
            f"planted in step {number}", rows, retryable=fault.retryable, kv_intact=fault.kv_intact
        )

    def _forget(self, group: int, blocks: Int32) -> None:
        for block in blocks.tolist():
            places = slice(block * self._block_size, (block + 1) * self._block_size)
            self._kv[group][:, places] = _POISON
            self._written[group][places] = False

    def _forward(self, step: Step) -> list[UInt64]:
        """What the head sees at each token, by row; nothing for rows that follow no token."""
        hidden: list[UInt64] = []
        starts = step.query_start.tolist()
        for row, (start, stop) in enumerate(pairwise(starts)):
            ids, source = step.token_ids[start:stop].copy(), int(step.token_source[start])
            if source >= 0:
                followed = self._last[source]
                assert stop - start == 1, "a row that follows has one token"
                assert len(followed) <= 1, "rule (h): a row of many tokens is followed"
                if not followed:  # it ended meanwhile, and nobody wants what comes after
                    hidden.append(np.zeros(0, np.uint64))
                    continue
                ids[0] = followed[0]
            hidden.append(self._run(step, row, ids, step.positions[start:stop]))
        return hidden

    def _run(self, step: Step, row: int, ids: Int32, positions: Int32) -> UInt64:
        """One sequence's tokens through both layers. uint64[number of tokens]."""
        assert (np.diff(positions) == 1).all()
        known = self._slots[int(step.slots[row])].ids
        assert ids.tolist() == known[positions[0] : positions[-1] + 1], "not the sequence's tokens"
        inputs: NDArray[Any] = ids
        for layer in range(2):
            total = np.zeros(len(ids), np.uint64)
            for g in range(len(self.groups)):
                values = self.model.write(layer, g, inputs, positions)
                total = total + self._attend(g, layer, step.block_table[g, row], values, positions)
            inputs = total
        return inputs

    def _attend(
        self, group: int, layer: int, table: Int32, values: UInt64, positions: Int32
    ) -> UInt64:
        """Write, then read through the block table, as attention does."""
        size, kv, written = self._block_size, self._kv[group][layer], self._written[group]
        context = np.arange(positions[-1] + 1)
        places = table[context // size] * size + context % size
        own = places[positions]
        assert (own >= size).all(), "rule (i): a token writes to block 0"
        if layer == 0:
            again = written[own]
            assert (kv[own][again] == values[again]).all(), "a written place gets other contents"
        kv[own] = values
        written[own] = True
        window = self.model.windows[group]
        first = 0 if window is None else max(0, int(positions[0]) - window + 1)
        assert written[places[first:]].all(), "a place is read that nobody wrote, or block 0"
        return self.model.read(group, kv[places], positions)

    # -- sampling ---------------------------------------------------------------------------------

    def _sample(
        self, step: Step, hidden: list[UInt64], late: LateInputs | None, sick: set[int]
    ) -> StepResult:
        rows, most = step.num_rows, int(step.max_tokens.max())
        shown = max(0, int(step.num_logprobs.max()))
        result = StepResult.blank(step.step_id, rows, shown, most)
        masks = _masks(step, late)
        self._last = [[] for _ in range(rows)]
        for row in range(rows):
            if late is not None and late.drop[row]:
                result.status[row] = RowStatus.DROPPED
            elif step.sample[row] and len(hidden[row]):
                self._choose_row(step, row, hidden[row], masks.get(row), row in sick, result)
        if (step.prompt_targets >= 0).any():
            self._report_prompt(step, hidden, shown, result)
        return result

    def _choose_row(
        self,
        step: Step,
        row: int,
        hidden: UInt64,
        allowed: NDArray[np.bool_] | None,
        sick: bool,
        result: StepResult,
    ) -> None:
        """Choose up to max_tokens tokens, running each but the last through the model."""
        slot, limit = self._slots[int(step.slots[row])], int(step.max_tokens[row])
        assert allowed is None or limit == 1, "a mask is for one token"
        tokens, count = self._last[row], 1 + int(hidden[-1]) % limit
        for k in range(count):
            logits = self.model.logits(int(hidden[-1]))
            if sick:
                logits = np.full_like(logits, np.nan)
            choice = self._choose(step, row, slot, logits, allowed)
            result.status[row] = choice.status
            if choice.status is not RowStatus.OK:
                return
            tokens.append(choice.token)
            slot.output.append(choice.token)
            result.tokens[row, k], result.n_tokens[row] = choice.token, k + 1
            result.logprobs[row, k] = choice.logprob
            top = int(step.num_logprobs[row])
            if top > 0:
                ids, values = top_logprobs(logits, top)
                result.top_ids[row, k, :top], result.top_logprobs[row, k, :top] = ids, values
            if choice.token in slot.init.stop_ids.tolist() or k + 1 == count:
                return
            here = np.array([len(slot.ids) - 1], np.int32)
            hidden = self._run(step, row, np.array([choice.token], np.int32), here)

    def _choose(
        self,
        step: Step,
        row: int,
        slot: _Slot,
        logits: Float32,
        allowed: NDArray[np.bool_] | None,
    ) -> Choice:
        init, position = slot.init, len(slot.ids)
        assert position >= step.sample_positions[row]
        most = init.sampling.max_tokens
        assert most is None or len(slot.output) < most, "rule (g): the length is overrun"
        assert int(step.seeds[row]) == (init.sampling.seed or 0)
        return choose(
            logits,
            init.sampling,
            prompt_ids=init.prompt_ids,
            output_ids=slot.output,
            seed=int(step.seeds[row]),
            position=position,
            allowed=allowed,
            banned=init.stop_ids.tolist() if position < init.min_position else (),
        )

    def _report_prompt(
        self, step: Step, hidden: list[UInt64], shown: int, result: StepResult
    ) -> None:
        tokens = step.num_tokens
        result.prompt_logprobs = np.zeros(tokens, np.float32)
        result.prompt_top_ids = np.zeros((tokens, shown), np.int32)
        result.prompt_top_logprobs = np.zeros((tokens, shown), np.float32)
        for row, seen in enumerate(hidden):
            for at, one in enumerate(seen.tolist(), int(step.query_start[row])):
                if step.prompt_targets[at] >= 0:
                    init, position = self._slots[int(step.slots[row])].init, step.positions[at]
                    assert init.sampling.prompt_logprobs is not None, "a target nobody asked for"
                    assert step.prompt_targets[at] == init.prompt_ids[position + 1]
                    logits = self.model.logits(one)
                    result.prompt_logprobs[at] = log_softmax(logits)[step.prompt_targets[at]]
                    ids, values = top_logprobs(logits, shown)
                    result.prompt_top_ids[at], result.prompt_top_logprobs[at] = ids, values


def _masks(step: Step, late: LateInputs | None) -> Masks:
    if late is not None:
        rows = late.rows.tolist()
        return {row: unpack(words) for row, words in zip(rows, late.bitmask, strict=True)}
    if STEP_MASKS in step.extras:
        words = step.extras[STEP_MASKS].astype(np.uint32)
        return {row: unpack(mine) for row, mine in enumerate(words) if (mine != 2**32 - 1).any()}
    return {}
