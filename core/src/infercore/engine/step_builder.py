"""From a schedule to the arrays of a `Step`, in buffers that are reused.

An executor owns a step's arrays until its result returned, so there is one set of buffers more
than steps in flight.
"""

from array import array
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infercore.engine.block_manager import BlockManager
from infercore.engine.buckets import Buckets
from infercore.engine.limits import EngineLimits
from infercore.engine.schedule import Schedule
from infercore.engine.sequence import Sequence
from infercore.executor import Bucket
from infercore.step import NO_LOGPROBS, NO_SLOT, Bool, Int32, SlotInit, Step, UInt64

_Scalar = TypeVar("_Scalar", bound=np.generic)
_BY_VALUE = array("i", [-1])  # in `token_source`: the host knows the token
_PADDED_TOKEN = {"token_ids": 0, "token_source": -1, "positions": 0, "prompt_targets": -1}
_PADDED_ROW = {
    "slots": NO_SLOT,
    "context_len": 1,
    "sample": False,
    "seeds": 0,
    "sample_positions": 1,
    "adapter": 0,
    "num_logprobs": NO_LOGPROBS,
    "max_tokens": 1,
}


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
    """Fills the next set of buffers; whole arrays at a time, so that many rows cost little.

    padded_tokens: tokens run so far that belong to no sequence.
    """

    def __init__(
        self, blocks: BlockManager, limits: EngineLimits, max_in_flight: int, buckets: Buckets
    ) -> None:
        self._blocks = blocks
        self._buckets = buckets
        self.padded_tokens = 0
        groups, slots, width = blocks.tables.shape
        most = buckets.largest(limits.max_batch_tokens, slots, width)
        self._buffers = [
            _Buffers(groups, most.tokens, most.rows, most.blocks) for _ in range(max_in_flight + 1)
        ]
        self._turn = 0
        self._count: Int32 = np.arange(most.tokens + 1, dtype=np.int32)
        self._flat_tables: Int32 = blocks.tables.reshape(groups, slots * width)
        self._seeds: UInt64 = np.zeros(slots, np.uint64)
        self._num_logprobs: Int32 = np.zeros(slots, np.int32)

    def build(self, plan: Schedule, *, late: bool) -> Step:
        """The step of `plan`, padded; its arrays are valid for max_in_flight more calls."""
        self._turn = (self._turn + 1) % len(self._buffers)
        buffers, rows, tokens = self._buffers[self._turn], len(plan.seqs), sum(plan.counts)
        width = max([seq.num_blocks for seq in plan.seqs])
        shape = self._buckets.fit(tokens, rows, width)
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
        slot_mapping = self._slot_mapping(buffers, slot_of, positions, shape)
        block_table = self._block_table(buffers, plan, starts, width, shape)
        if shape.tokens > tokens:
            self._pad(buffers, rows, tokens, shape)
        return Step(
            step_id=plan.step_id,
            token_ids=buffers.token_ids[: shape.tokens],
            token_source=buffers.token_source[: shape.tokens],
            positions=buffers.positions[: shape.tokens],
            slot_mapping=slot_mapping,
            prompt_targets=buffers.prompt_targets[: shape.tokens],
            slots=buffers.slots[: shape.rows],
            query_start=buffers.query_start[: shape.rows + 1],
            context_len=buffers.context_len[: shape.rows],
            block_table=block_table,
            sample=buffers.sample[: shape.rows],
            seeds=buffers.seeds[: shape.rows],
            sample_positions=buffers.sample_positions[: shape.rows],
            adapter=buffers.adapter[: shape.rows],
            num_logprobs=buffers.num_logprobs[: shape.rows],
            max_tokens=buffers.max_tokens[: shape.rows],
            slot_init=inits,
            fresh_blocks=tuple([np.array(blocks, np.int32) for blocks in plan.fresh]),
            late=late,
        )

    def _pad(self, buffers: _Buffers, rows: int, tokens: int, shape: Bucket) -> None:
        """Rows of one token on block 0, then tokens of no row; `slot_mapping` is 0 already."""
        self.padded_tokens += shape.tokens - tokens
        for name, value in _PADDED_TOKEN.items():
            getattr(buffers, name)[tokens : shape.tokens] = value
        for name, value in _PADDED_ROW.items():
            getattr(buffers, name)[rows : shape.rows] = value
        ends = self._count[1 : shape.rows - rows + 1] + tokens
        buffers.query_start[rows + 1 : shape.rows + 1] = ends

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

    def _slot_mapping(
        self, buffers: _Buffers, slot_of: Int32, positions: Int32, shape: Bucket
    ) -> Int32:
        size, width, tokens = self._blocks.block_size, self._blocks.tables.shape[-1], len(positions)
        whole = _shaped(buffers.slot_mapping, len(self._flat_tables), shape.tokens)
        mapping = whole[:, :tokens]
        index, offset = np.divmod(positions, size)
        self._flat_tables.take(slot_of * width + index, axis=1, out=mapping, mode="clip")
        mapping *= size
        mapping += offset
        whole[:, tokens:] = 0
        return whole

    def _block_table(
        self, buffers: _Buffers, plan: Schedule, starts: Int32, width: int, shape: Bucket
    ) -> Int32:
        """The tables as of now, without the blocks that no query of this step reads."""
        tables, rows = self._blocks.tables, len(plan.seqs)
        whole = _shaped(buffers.block_table, len(tables), shape.rows, shape.blocks)
        whole[:, rows:] = whole[:, :rows, width:] = 0
        table = whole[:, :rows, :width]
        table[:] = tables[:, buffers.slots[:rows], :width]
        for g, window in self._blocks.windows:
            first = np.maximum(starts - (window - 1), 0) // self._blocks.block_size
            table[g][np.arange(width) < first[:, None]] = 0
        return whole
