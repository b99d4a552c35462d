"""Steps that are in flight, and copies between them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from infercore.errors import StepDropped, StepFailed
from infercore.executor import CopyDirection, Executor, Handle
from infercore.step import Int32, Step, StepResult
from planted.defect import defect, replaced

Submit = Callable[[Step], Handle]
Wait = Callable[[float | None], StepResult]
Copy = Callable[[str, Int32, Int32, CopyDirection], Handle]


@defect(at="step", caught_by="executor.in_flight.follow")
def source_is_ignored(step: Step) -> Step:
    """A token that a step in flight produces is taken for token 0."""
    return replace(step, token_source=np.full_like(step.token_source, -1))


@defect(at="step", caught_by="executor.in_flight.follow_other_row")
def source_is_the_same_row(step: Step) -> Step:
    """A row continues with the token of the row that stands where it stands itself."""
    rows = np.repeat(np.arange(step.num_rows, dtype=np.int32), np.diff(step.query_start))
    source = step.token_source.copy()
    source[: len(rows)] = np.where(source[: len(rows)] >= 0, rows, -1)
    return replace(step, token_source=source)


@defect(at="step", caught_by="executor.in_flight.follow_in_part")
def all_rows_follow(step: Step) -> Step:
    """Where one row follows a step in flight, all of them do."""
    if step.token_source.max() < 0:
        return step
    return replace(step, token_source=np.maximum(step.token_source, 0))


@defect(at="Executor", caught_by="executor.in_flight.results")
def result_of_the_newest(executor: Executor) -> None:
    """Every handle gives the result of the step that was submitted last."""
    newest: list[Wait] = []

    def submit(right: Submit, step: Step) -> Handle:
        handle = right(step)
        newest[:] = [handle.result]
        return replaced(handle, "result", lambda _, timeout=None: newest[0](timeout))

    replaced(executor, "submit", submit)


@defect(
    at="Executor.submit", caught_by="executor.in_flight.submit_returns", cause="Hung", slow=True
)
def submit_waits(right: Submit, step: Step) -> Handle:
    """Submit waits for the step, unless it is a late one."""
    handle = right(step)
    if step.late:
        return handle
    done = handle.result()
    return replaced(handle, "result", lambda *_: done)


@defect(at="Handle.result", caught_by="executor.in_flight.timeout", cause="Hung", slow=True)
def timeout_is_ignored(right: Wait, timeout: float | None = None) -> StepResult:
    """A result is waited for without end."""
    return right(None)


@defect(at="Handle.result", caught_by="executor.in_flight.timeout", stateful=True)
def timeout_loses_the_result() -> Callable[[Wait, float | None], StepResult]:
    """A result that came too late once never comes."""
    lost: list[bool] = []

    def result(right: Wait, timeout: float | None = None) -> StepResult:
        try:
            return StepResult.blank(0, 1) if lost else right(timeout)
        except TimeoutError:
            lost.append(True)
            raise

    return result


@defect(at="Handle.result", caught_by="executor.in_flight.timeout", cause="StepFailed")
def timeout_fails_the_step(right: Wait, timeout: float | None = None) -> StepResult:
    """A result that is not there yet is a failed step."""
    try:
        return right(timeout)
    except TimeoutError as error:
        raise StepFailed("the step took too long") from error


@defect(at="Handle.result", caught_by="executor.in_flight.timeout")
def timeout_is_no_result(right: Wait, timeout: float | None = None) -> StepResult:
    """A result that is not there yet is an empty one."""
    try:
        return right(timeout)
    except TimeoutError:
        return StepResult.blank(0, 1)


@defect(at="Executor.copy_blocks", caught_by="executor.copy.blocks")
def copies_are_skipped(
    right: Copy, group: str, src: Int32, dst: Int32, direction: CopyDirection
) -> Handle:
    """A copy copies nothing."""
    return right(group, src[:0], dst[:0], direction)


@defect(at="Executor.copy_blocks", caught_by="executor.copy.blocks")
def copies_go_backwards(
    right: Copy, group: str, src: Int32, dst: Int32, direction: CopyDirection
) -> Handle:
    """A copy takes its target for its source."""
    return right(group, dst, src, direction)


@defect(at="Executor.copy_blocks", caught_by="executor.copy.ordered")
def copies_wait_for_their_result(
    right: Copy, group: str, src: Int32, dst: Int32, direction: CopyDirection
) -> Handle:
    """A copy is made when its result is asked for, and not in the order of the calls."""
    handle = right(group, src[:0], dst[:0], direction)
    return replaced(
        handle, "result", lambda _, timeout: right(group, src, dst, direction).result(timeout)
    )


@defect(
    at="Executor.submit",
    caught_by="executor.in_flight.refused",
    cause="StepDropped",
    stateful=True,
)
def a_refused_step_drops_the_one_before() -> Callable[[Submit, Step], Handle]:
    """Whatever is refused ends what is in flight with it."""
    newest: list[Handle] = []

    def dropped(right: Wait, timeout: float | None = None) -> StepResult:
        raise StepDropped(f"step {right(timeout).step_id} was followed by one that was refused")

    def submit(right: Submit, step: Step) -> Handle:
        if step.extras:
            replaced(newest[-1], "result", dropped)
        newest.append(right(step))
        return newest[-1]

    return submit
