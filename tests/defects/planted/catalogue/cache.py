"""The KV cache: where keys are written, and which blocks are read."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from infercore.sampling import RowStatus
from infercore.step import LateInputs, Step, StepResult
from planted.defect import defect

Late = LateInputs | None
Allocate = Callable[[Mapping[str, int]], None]
LAST = 63  # block, of the 64 that the suite allocates
SIZE = 16  # tokens of a block


@defect(at="step", caught_by="executor.model.reference")
def slots_are_off_by_one(step: Step) -> Step:
    """Keys are written one position behind their own, the last of a block to its start."""
    block, offset = np.divmod(step.slot_mapping, SIZE)
    return replace(step, slot_mapping=block * SIZE + (offset + 1) % SIZE)


@defect(at="step", caught_by="executor.model.reference")
def context_is_one_short(step: Step) -> Step:
    """A decode does not read its own newest key."""
    short = (np.diff(step.query_start) == 1) & (step.context_len > 1)
    return replace(step, context_len=step.context_len - short.astype(np.int32))


@defect(at="step", caught_by="executor.kv.order")
def blocks_are_consecutive(step: Step) -> Step:
    """A row reads the blocks that follow its first one, whatever its table says."""
    table = step.block_table[..., :1] + np.arange(step.block_table.shape[-1], dtype=np.int32)
    return replace(step, block_table=np.where(step.block_table > 0, table % (LAST + 1), 0))


@defect(at="step", caught_by="executor.kv.order")
def blocks_are_sorted(step: Step) -> Step:
    """A row reads its blocks in rising order."""
    return replace(step, block_table=np.sort(step.block_table, axis=-1))


@defect(at="step", caught_by="executor.kv.every_block")
def last_block_is_the_one_before(step: Step) -> Step:
    """The last block that was allocated stands where the one before it stands."""
    table = np.where(step.block_table == LAST, LAST - 1, step.block_table)
    behind = step.slot_mapping >= LAST * SIZE
    return replace(
        step, block_table=table, slot_mapping=step.slot_mapping - np.int32(SIZE) * behind
    )


@defect(at="step", caught_by="executor.kv.not_finite", base="plain")
def fresh_blocks_are_not_cleared(step: Step) -> Step:
    """What stood in a block stays there when it is handed out again."""
    return replace(step, fresh_blocks=tuple(blocks[:0] for blocks in step.fresh_blocks))


@defect(at="step", caught_by="executor.kv.reused")
def last_block_is_read_to_its_end(step: Step) -> Step:
    """A decode reads its last block whole, whatever stands behind its own tokens."""
    whole = (-(-step.context_len // SIZE) * SIZE).astype(np.int32)
    decodes = np.diff(step.query_start) == 1
    return replace(step, context_len=np.where(decodes, whole, step.context_len))


@defect(at="step", caught_by="executor.kv.shared")
def prefix_is_not_read(step: Step) -> Step:
    """A sequence that starts behind cached blocks reads what is its own only."""
    counts = np.diff(step.query_start)
    starts = np.isin(step.slots, [init.slot for init in step.slot_init])
    context = np.where(starts, counts, step.context_len)
    return replace(step, context_len=context.astype(np.int32))


@defect(at="step", caught_by="executor.kv.shared", base="plain")
def fresh_blocks_of_all(step: Step) -> Step:
    """A sequence that starts has all its blocks cleared, those that it shares too."""
    rows = np.isin(step.slots, [init.slot for init in step.slot_init])
    cleared = [np.unique(table[rows]) for table in step.block_table]
    return replace(step, fresh_blocks=tuple(blocks[blocks > 0] for blocks in cleared))


@defect(
    at="Executor.allocate_kv",
    caught_by="executor.kv.allocated_again",
    cause="RuntimeError",
    stateful=True,
)
def second_allocation_fails() -> Callable[[Allocate, Mapping[str, int]], None]:
    """A cache that is there cannot be allocated again."""
    there: list[bool] = []

    def allocate(right: Allocate, num_blocks: Mapping[str, int]) -> None:
        if there:
            raise RuntimeError("the cache is allocated already")
        there.append(True)
        right(num_blocks)

    return allocate


@defect(at="result", caught_by="executor.kv.not_finite")
def not_finite_is_ok(result: StepResult, step: Step, late: Late) -> StepResult:
    """A row whose logits are no numbers yields a token."""
    broken = result.status == RowStatus.NOT_FINITE
    result.status[broken] = RowStatus.OK
    result.n_tokens[broken] = 1
    return result


@defect(at="result", caught_by="executor.kv.not_finite")
def not_finite_counts(result: StepResult, step: Step, late: Late) -> StepResult:
    """A row that is not finite says so, and counts a token all the same."""
    result.n_tokens[result.status == RowStatus.NOT_FINITE] = 1
    return result


@defect(at="result", caught_by="executor.kv.not_finite")
def not_finite_ends_all(result: StepResult, step: Step, late: Late) -> StepResult:
    """One row that is not finite ends every row of its step."""
    if (result.status == RowStatus.NOT_FINITE).any():
        result.status[:] = RowStatus.NOT_FINITE
    return result
