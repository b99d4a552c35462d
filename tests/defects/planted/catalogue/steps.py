"""What a step is given, and what it yields."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from infercore.errors import StepFailed
from infercore.executor import Executor, Handle
from infercore.sampling import RowStatus
from infercore.step import LateInputs, Step, StepResult
from planted.defect import defect, replaced

Late = LateInputs | None
Submit = Callable[[Step], Handle]


@defect(at="result", caught_by="executor.step.id")
def id_of_the_step_before(result: StepResult, step: Step, late: Late) -> StepResult:
    """A result bears the id of the step before its own."""
    return replace(result, step_id=step.step_id - 1)


@defect(at="result", caught_by="executor.step.result")
def tokens_are_wide(result: StepResult, step: Step, late: Late) -> StepResult:
    """Tokens are int64, as the framework has them."""
    return replace(result, tokens=result.tokens.astype(np.int64))


@defect(at="result", caught_by="executor.step.result")
def every_row_yields(result: StepResult, step: Step, late: Late) -> StepResult:
    """A row in the middle of its prompt counts a token."""
    return replace(result, n_tokens=np.ones_like(result.n_tokens))


@defect(at="result", caught_by="executor.step.result")
def status_is_always_ok(result: StepResult, step: Step, late: Late) -> StepResult:
    """A row that was not sampled says that it is OK."""
    return replace(result, status=np.full_like(result.status, RowStatus.OK))


@defect(at="result", caught_by="executor.step.result")
def prompt_logprobs_unasked(result: StepResult, step: Step, late: Late) -> StepResult:
    """A step without targets has log-probabilities of its prompt."""
    return replace(result, prompt_logprobs=np.zeros(step.num_tokens, np.float32))


@defect(at="step", caught_by="executor.step.ragged")
def every_row_is_sampled(step: Step) -> Step:
    """Rows are sampled that were not to be."""
    return replace(step, sample=np.ones_like(step.sample))


@defect(at="result", caught_by="executor.step.logprobs")
def likeliest_come_last(result: StepResult, step: Step, late: Late) -> StepResult:
    """The likeliest tokens come in rising order."""
    ids, values = result.top_ids[..., ::-1], result.top_logprobs[..., ::-1]
    return replace(result, top_ids=ids, top_logprobs=values)


@defect(at="result", caught_by="executor.step.logprobs")
def logits_for_logprobs(result: StepResult, step: Step, late: Late) -> StepResult:
    """Logits are not normalized."""
    return replace(
        result, top_logprobs=result.top_logprobs + 2, logprobs=result.logprobs + np.float32(2)
    )


@defect(at="result", caught_by="executor.step.logprobs")
def logprob_of_the_second(result: StepResult, step: Step, late: Late) -> StepResult:
    """A choice's log-probability is that of the second likeliest."""
    if result.top_logprobs.shape[-1] < 2:
        return result
    return replace(result, logprobs=result.top_logprobs[..., 1])


@defect(at="result", caught_by="executor.step.no_logprobs")
def logprobs_unasked(result: StepResult, step: Step, late: Late) -> StepResult:
    """The likeliest token is told though nobody asked."""
    if result.top_ids.shape[-1]:
        return result
    return replace(
        result, top_ids=result.tokens[..., None], top_logprobs=result.logprobs[..., None]
    )


@defect(at="result", caught_by="executor.step.prompt_logprobs")
def prompt_logprobs_shifted(result: StepResult, step: Step, late: Late) -> StepResult:
    """A prompt's log-probabilities stand at the tokens that they are of, not at those before."""
    if result.prompt_logprobs is None:
        return result
    return replace(result, prompt_logprobs=np.roll(result.prompt_logprobs, 1))


@defect(at="result", caught_by="executor.step.prompt_logprobs")
def prompt_logprobs_never(result: StepResult, step: Step, late: Late) -> StepResult:
    """Log-probabilities of the prompt are declared, and never computed."""
    return replace(result, prompt_logprobs=None, prompt_top_ids=None, prompt_top_logprobs=None)


@defect(at="result", caught_by="executor.step.prompt_logprobs")
def prompt_top_is_second(result: StepResult, step: Step, late: Late) -> StepResult:
    """The likeliest tokens of the prompt begin with the second."""
    if result.prompt_top_logprobs is None:
        return result
    return replace(result, prompt_top_logprobs=np.roll(result.prompt_top_logprobs, -1, axis=-1))


@defect(at="step", caught_by="executor.step.chunks")
def positions_of_the_chunk(step: Step) -> Step:
    """Positions of a chunk are counted from its own start."""
    positions = step.positions.copy()
    for start, end in zip(step.query_start[:-1], step.query_start[1:], strict=True):
        if end - start > 1:
            positions[start:end] -= positions[start]
    return replace(step, positions=positions)


@defect(at="step", caught_by="executor.step.decode")
def decode_is_one_ahead(step: Step) -> Step:
    """A row of one token is embedded one position too far."""
    single = np.repeat(np.diff(step.query_start) == 1, np.diff(step.query_start))
    positions = step.positions.copy()
    positions[: len(single)] += single
    return replace(step, positions=positions)


@defect(at="step", caught_by="executor.model.reference")
def positions_are_stretched(step: Step) -> Step:
    """Every position is taken twice as far as it is."""
    return replace(step, positions=2 * step.positions)


@defect(at="step", caught_by="executor.step.company")
def blocks_of_the_first_row(step: Step) -> Step:
    """All rows read the blocks of the first one."""
    return replace(step, block_table=np.repeat(step.block_table[:, :1], step.num_rows, axis=1))


@defect(at="step", caught_by="executor.step.ragged")
def context_of_the_longest(step: Step) -> Step:
    """Rows of one token read as many keys as the longest row of the step."""
    single = np.diff(step.query_start) == 1
    most = min(int(step.context_len.max()), step.block_table.shape[-1] * 16)
    return replace(step, context_len=np.where(single, most, step.context_len).astype(np.int32))


@defect(at="step", caught_by="executor.step.arrays_returned", stateful=True)
def last_position_is_read_again() -> Callable[[Step], Step]:
    """A decode's position is read off the arrays of the step before, which has ended."""
    before: list[Step] = []

    def submitted(step: Step) -> Step:
        last = before[-1] if before else step
        before[:] = [step]
        if step.num_tokens > 1:
            return step
        return replace(step, positions=last.positions[-1:] + np.int32(last is not step))

    return submitted


@defect(at="result", caught_by="executor.step.result_kept", stateful=True)
def results_share_a_buffer() -> Callable[[StepResult, Step, Late], StepResult]:
    """A result's arrays are those of the result before, filled anew."""
    kept: list[StepResult] = []

    def result(new: StepResult, step: Step, late: Late) -> StepResult:
        if kept and kept[0].top_ids.shape == new.top_ids.shape:
            for name in ("tokens", "top_ids", "top_logprobs"):
                getattr(kept[0], name)[:] = getattr(new, name)
                setattr(new, name, getattr(kept[0], name))
        kept[:] = [new]
        return new

    return result


@defect(at="step", caught_by="executor.step.unknown_extra")
def extras_are_ignored(step: Step) -> Step:
    """An extra that nobody knows is left out without a word."""
    return replace(step, extras={})


@defect(at="Executor.submit", caught_by="executor.step.unknown_extra")
def extras_fail_again(right: Submit, step: Step) -> Handle:
    """A step with an unknown extra may be tried again, the failure says."""
    try:
        return right(step)
    except StepFailed as error:
        error.retryable = True
        raise


@defect(at="Executor.submit", caught_by="executor.step.unknown_extra")
def extras_spoil_the_cache(right: Submit, step: Step) -> Handle:
    """A refused step leaves the cache in doubt, the failure says, though nothing ran."""
    try:
        return right(step)
    except StepFailed as error:
        error.kv_intact = False
        raise


@defect(at="Executor.submit", caught_by="executor.step.unknown_extra")
def extras_are_not_named(right: Submit, step: Step) -> Handle:
    """The failure does not say which extra is unknown."""
    if step.extras:
        raise StepFailed("the step has an extra that is unknown", retryable=False)
    return right(step)


@defect(at="step", caught_by="engine.prompt_logprobs")
def targets_end_before_the_chunk(step: Step) -> Step:
    """The last token of a chunk has no target: the next chunk's first is not known yet."""
    targets = step.prompt_targets.copy()
    targets[step.query_start[1:] - 1] = -1
    return replace(step, prompt_targets=targets)


@defect(at="result", caught_by="engine.logprobs")
def every_row_has_what_the_first_asked(result: StepResult, step: Step, late: Late) -> StepResult:
    """No row has more of the likeliest tokens than the first one asked for."""
    most = max(0, int(step.num_logprobs[0]))
    return replace(
        result, top_ids=result.top_ids[..., :most], top_logprobs=result.top_logprobs[..., :most]
    )


@defect(at="Executor", caught_by="engine.same.failed_step")
def noise_counts_steps(executor: Executor) -> None:
    """Noise is counted by steps that ran, and a step whose result was lost ran too."""
    ran: list[int] = []

    def submit(right: Submit, step: Step) -> Handle:
        ran.append(step.step_id)
        shift = np.int32(len(ran) - step.step_id)
        return right(replace(step, sample_positions=step.sample_positions + shift))

    replaced(executor, "submit", submit)
