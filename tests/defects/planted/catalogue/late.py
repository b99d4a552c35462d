"""Late inputs: masks, and rows whose token is no longer wanted."""

from dataclasses import replace

import numpy as np

from infercore.sampling import RowStatus
from infercore.step import LateInputs, Step, StepResult
from planted.defect import defect

Late = LateInputs | None


@defect(at="late", caught_by="executor.late.mask")
def masks_are_dropped(late: LateInputs, step: Step) -> LateInputs:
    """Masks never reach the sampler."""
    return replace(late, rows=late.rows[:0], bitmask=late.bitmask[:0])


@defect(at="late", caught_by="executor.late.mask")
def one_mask_only(late: LateInputs, step: Step) -> LateInputs:
    """Of several masks the first one counts."""
    return replace(late, rows=late.rows[:1], bitmask=late.bitmask[:1])


@defect(at="late", caught_by="executor.late.mask")
def masks_bind_all_rows(late: LateInputs, step: Step) -> LateInputs:
    """Where one row has a mask, every row is bound by it."""
    if not len(late.rows):
        return late
    rows = np.arange(step.num_rows, dtype=np.int32)
    return replace(late, rows=rows, bitmask=np.repeat(late.bitmask[:1], len(rows), axis=0))


@defect(at="late", caught_by="executor.late.mask")
def masks_come_in_the_order_of_rows(late: LateInputs, step: Step) -> LateInputs:
    """Masks are taken to be sorted by their rows."""
    return replace(late, rows=np.sort(late.rows))


@defect(at="late", caught_by="executor.late.mask")
def masks_stand_at_their_rows(late: LateInputs, step: Step) -> LateInputs:
    """The first mask is the first row's, whatever row it names."""
    return replace(late, rows=np.arange(len(late.rows), dtype=np.int32))


@defect(at="late", caught_by="executor.late.mask_bits")
def mask_bits_are_big_endian(late: LateInputs, step: Step) -> LateInputs:
    """The highest bit of a word is taken for its first token."""
    bits = np.unpackbits(late.bitmask.view(np.uint8), axis=-1, bitorder="little")
    words = bits.reshape(*late.bitmask.shape, 32)[..., ::-1].reshape(len(bits), -1)
    mask = np.packbits(words, axis=-1, bitorder="little").view(np.uint32)
    return replace(late, bitmask=mask)


@defect(at="late", caught_by="executor.late.mask_bits")
def mask_bits_are_shifted(late: LateInputs, step: Step) -> LateInputs:
    """Bit v is taken for token v + 1."""
    return replace(late, bitmask=late.bitmask << np.uint32(1))


@defect(at="late", caught_by="executor.late.mask_bits")
def mask_ends_early(late: LateInputs, step: Step) -> LateInputs:
    """The last word of a mask is not read: its tokens are forbidden."""
    mask = late.bitmask.copy()
    mask[:, -1] = 0
    return replace(late, bitmask=mask)


@defect(at="late", caught_by="executor.late.mask_bits")
def mask_is_inverted(late: LateInputs, step: Step) -> LateInputs:
    """A bit that is set forbids."""
    return replace(late, bitmask=~late.bitmask)


@defect(at="result", caught_by="executor.late.logprobs")
def logprobs_are_after_the_mask(result: StepResult, step: Step, late: Late) -> StepResult:
    """Log-probabilities are of the distribution that a mask left: here, of one token."""
    if late is not None and result.logprobs.size:
        result.logprobs[late.rows] = 0
    return result


@defect(at="result", caught_by="executor.late.nothing_allowed")
def nothing_allowed_is_ok(result: StepResult, step: Step, late: Late) -> StepResult:
    """A row that no token is allowed to says that it is OK."""
    status = np.where(result.status == RowStatus.NO_TOKEN, RowStatus.OK, result.status)
    return replace(result, status=status.astype(np.uint8))


@defect(at="result", caught_by="executor.late.nothing_allowed")
def nothing_allowed_ends_all(result: StepResult, step: Step, late: Late) -> StepResult:
    """One row without a token leaves the others without one."""
    if (result.status == RowStatus.NO_TOKEN).any():
        result.status[:] = RowStatus.NO_TOKEN
    return result


@defect(at="late", caught_by="executor.late.drop")
def drops_are_ignored(late: LateInputs, step: Step) -> LateInputs:
    """A row whose sequence has ended yields a token."""
    return replace(late, drop=np.zeros_like(late.drop))


@defect(at="late", caught_by="executor.late.drop")
def the_next_row_is_dropped(late: LateInputs, step: Step) -> LateInputs:
    """The row behind the one that ended is dropped."""
    return replace(late, drop=np.roll(late.drop, 1))


@defect(at="result", caught_by="executor.late.drop")
def dropped_rows_count(result: StepResult, step: Step, late: Late) -> StepResult:
    """A dropped row counts the token that it does not yield."""
    dropped = result.status == RowStatus.DROPPED
    return replace(result, n_tokens=result.n_tokens + dropped.astype(np.int32))


@defect(at="result", caught_by="executor.late.drop")
def dropped_rows_were_not_sampled(result: StepResult, step: Step, late: Late) -> StepResult:
    """A dropped row says that it was not to be sampled."""
    dropped = result.status == RowStatus.DROPPED
    status = np.where(dropped, RowStatus.NOT_SAMPLED, result.status)
    return replace(result, status=status.astype(np.uint8))


@defect(at="late", caught_by="executor.late.nothing")
def no_mask_allows_nothing(late: LateInputs, step: Step) -> LateInputs:
    """A late step without masks is masked by zeros."""
    if len(late.rows):
        return late
    rows = np.arange(step.num_rows, dtype=np.int32)
    return replace(late, rows=rows, bitmask=np.zeros((len(rows), late.bitmask.shape[1]), np.uint32))


@defect(at="step", caught_by="executor.late.behind")
def late_steps_do_not_follow(step: Step) -> Step:
    """A late step does not continue with the token of the step in flight."""
    if not step.late:
        return step
    return replace(step, token_source=np.full_like(step.token_source, -1))


@defect(at="late", caught_by="executor.late.mask_sampled")
def sampled_rows_are_not_masked(late: LateInputs, step: Step) -> LateInputs:
    """A mask binds greedy rows only."""
    sampled = [init.slot for init in step.slot_init if not init.sampling.greedy]
    bound = ~np.isin(step.slots[late.rows], sampled)
    return replace(late, rows=late.rows[bound], bitmask=late.bitmask[bound])
