"""From a schedule to the arrays of a `Step`, in buffers that are reused.

An executor owns a step's arrays until its result returned, so there is one set of buffers more
than steps in flight.
"""

from array import array
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infercore.engine.block_manager import BlockManager
from infercore.engine.limits import EngineLimits
from infercore.engine.schedule import Schedule
from infercore.engine.sequence import Sequence
from infercore.step import NO_LOGPROBS, Bool, Int32, SlotInit, Step, UInt64

_Scalar = TypeVar("_Scalar", bound=np.generic)
_BY_VALUE = array("i", [-1])  # in `token_source`: the host knows the token


class _Buffers:
    """One step's arrays at their largest; flat, so that any leading shape is C-contiguous."""

    def __init__(self, groups: int, tokens: int, rows: int, width: int) -> None:
        def ints(size: int) -> Int32:
            return np.zeros(size, np.int32)

        self.token_ids = ints(tokens)
        self.token_source = ints(tokens)
        self.positions = ints(tokens)
        self.slot_mapping = ints(groups * tokens)
        self.prompt_targets = ints(tokens)
        self.slots = ints(rows)
        self.query_start = ints(rows + 1)
        self.context_len = ints(rows)
        self.block_table = ints(groups * rows * width)
        self.sample: Bool = np.zeros(rows, np.bool_)
        self.seeds: UInt64 = np.zeros(rows, np.uint64)
        self.sample_positions = ints(rows)
        self.adapter = ints(rows)
        self.num_logprobs = ints(rows)
        self.max_tokens = ints(rows)


def _shaped(flat: NDArray[_Scalar], *shape: int) -> NDArray[_Scalar]:
    size = 1
    for dimension in shape:
        size *= dimension
    return flat[:size].reshape(shape)


def _or_none(num_logprobs: int | None) -> int:
    return NO_LOGPROBS if num_logprobs is None else num_logprobs


class StepBuilder:
    """Fills the next set of buffers; whole arrays at a time, so that many rows cost little."""

    def __init__(self, blocks: BlockManager, limits: EngineLimits, max_in_flight: int) -> None:
        self._blocks = blocks
        groups, slots, width = blocks.tables.shape
        self._buffers = [
            _Buffers(groups, limits.max_batch_tokens, slots, width)
            for _ in range(max_in_flight + 1)
        ]
        self._turn = 0
        self._count: Int32 = np.arange(limits.max_batch_tokens, dtype=np.int32)
        self._flat_tables: Int32 = blocks.tables.reshape(groups, slots * width)
        self._seeds: UInt64 = np.zeros(slots, np.uint64)
        self._num_logprobs: Int32 = np.zeros(slots, np.int32)

    def build(self, plan: Schedule, *, late: bool, extras: Mapping[str, NDArray[Any]]) -> Step:
        """The step of `plan`; its arrays are valid for max_in_flight more calls."""
        self._turn = (self._turn + 1) % len(self._buffers)
        buffers, rows, tokens = self._buffers[self._turn], len(plan.seqs), sum(plan.counts)
        inits = self._slot_inits(plan)
        slots, starts = buffers.slots[:rows], np.array(plan.starts, np.int32)
        slots[:] = [seq.slot for seq in plan.seqs]
        counts, max_tokens = np.array(plan.counts, np.int32), buffers.max_tokens[:rows]
        query_start, context_len = buffers.query_start[: rows + 1], buffers.context_len[:rows]
        counts.cumsum(out=query_start[1:])
        np.add(starts, counts, out=context_len)
        buffers.sample_positions[:rows] = context_len
        max_tokens[:] = plan.yields
        np.greater(max_tokens, 0, out=buffers.sample[:rows])
        np.maximum(max_tokens, 1, out=max_tokens)
        self._seeds.take(slots, out=buffers.seeds[:rows], mode="clip")
        self._num_logprobs.take(slots, out=buffers.num_logprobs[:rows], mode="clip")
        self._fill_ids(buffers, plan, tokens)
        positions, slot_of = buffers.positions[:tokens], slots
        if tokens == rows:
            positions[:] = starts
        else:
            slot_of = slots.repeat(counts)
            first = (query_start[:-1] - starts).repeat(counts)
            np.subtract(self._count[:tokens], first, positions)
        return Step(
            step_id=plan.step_id,
            token_ids=buffers.token_ids[:tokens],
            token_source=buffers.token_source[:tokens],
            positions=positions,
            slot_mapping=self._slot_mapping(buffers, slot_of, positions),
            prompt_targets=buffers.prompt_targets[:tokens],
            slots=slots,
            query_start=query_start,
            context_len=context_len,
            block_table=self._block_table(buffers, plan, starts),
            sample=buffers.sample[:rows],
            seeds=buffers.seeds[:rows],
            sample_positions=buffers.sample_positions[:rows],
            adapter=buffers.adapter[:rows],
            num_logprobs=buffers.num_logprobs[:rows],
            max_tokens=max_tokens,
            slot_init=inits,
            fresh_blocks=tuple([np.array(blocks, np.int32) for blocks in plan.fresh]),
            late=late,
            extras=extras,
        )

    def _slot_inits(self, plan: Schedule) -> tuple[SlotInit, ...]:
        inits = []
        for seq in plan.seqs:
            if not seq.initialised:
                seq.initialised = True
                self._seeds[seq.slot] = seq.request.sampling.seed or 0
                self._num_logprobs[seq.slot] = _or_none(seq.request.sampling.logprobs)
                inits.append(seq.slot_init())
        return tuple(inits)

    def _fill_ids(self, buffers: _Buffers, plan: Schedule, tokens: int) -> None:
        """Tokens by value where the host knows them, else by the row that will produce them."""
        buffers.prompt_targets[:tokens] = -1
        ids, sources = array("i"), array("i")
        for row, (seq, start, count) in enumerate(
            zip(plan.seqs, plan.starts, plan.counts, strict=True)
        ):
            if start >= len(seq.ids):
                ids.append(0)
                sources.append(seq.row)
            elif count == 1:
                ids.append(seq.ids[start])
                sources.append(-1)
            else:
                ids.extend(seq.ids[start : start + count])
                sources.extend(_BY_VALUE * count)
            if seq.prompt_logprobs is not None:
                self._fill_targets(buffers, row, seq, start, count)
            seq.row = row
        buffers.token_ids[:tokens] = ids
        buffers.token_source[:tokens] = sources

    def _fill_targets(
        self, buffers: _Buffers, row: int, seq: Sequence, start: int, count: int
    ) -> None:
        stop = min(start + count, seq.prompt_len - 1)
        if start < stop:
            at = int(buffers.query_start[row])
            buffers.prompt_targets[at : at + stop - start] = seq.ids[start + 1 : stop + 1]
            sampling = seq.request.sampling
            asked = (_or_none(sampling.logprobs), _or_none(sampling.prompt_logprobs))
            buffers.num_logprobs[row] = max(asked)

    def _slot_mapping(self, buffers: _Buffers, slot_of: Int32, positions: Int32) -> Int32:
        size, width = self._blocks.block_size, self._blocks.tables.shape[-1]
        mapping = _shaped(buffers.slot_mapping, len(self._flat_tables), len(positions))
        index, offset = np.divmod(positions, size)
        self._flat_tables.take(slot_of * width + index, axis=1, out=mapping, mode="clip")
        mapping *= size
        mapping += offset
        return mapping

    def _block_table(self, buffers: _Buffers, plan: Schedule, starts: Int32) -> Int32:
        """The tables as of now, without the blocks that no query of this step reads."""
        width = max([seq.num_blocks for seq in plan.seqs])
        tables = self._blocks.tables
        table = _shaped(buffers.block_table, len(tables), len(plan.seqs), width)
        slots = buffers.slots[: len(plan.seqs)]
        table[:] = tables[:, slots, :width]
        for g, window in self._blocks.windows:
            first = np.maximum(starts - (window - 1), 0) // self._blocks.block_size
            table[g][np.arange(width) < first[:, None]] = 0
        return table
