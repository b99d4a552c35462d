"""What shows only where the backend is in a server: other requests beside, before and after."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from infercore.capabilities import FULL, Capabilities
from infercore.step import LateInputs, Step, StepResult
from planted.defect import defect

SERVED = "infercore.engine_process"  # the module that the server's engine runs as


def _in_a_server() -> bool:
    return SERVED in " ".join(sys.orig_argv)


@defect(at="Executor.capabilities", caught_by="http.facts.capabilities", slow=True)
def declares_more_to_a_server(right: Callable[[], Capabilities]) -> Capabilities:
    """The server is told of a feature that conformance is not told of."""
    told = right()
    return replace(told, extras={"speed": FULL}, graph_capture=FULL) if _in_a_server() else told


@defect(at="result", caught_by="http.answers.native", slow=True)
def tokens_are_other_ones_in_a_server(
    result: StepResult, step: Step, late: LateInputs | None
) -> StepResult:
    """A long-running process chooses other tokens than a short one."""
    if not _in_a_server():
        return result
    return replace(result, tokens=np.maximum(result.tokens - 1, 5).astype(np.int32))


@defect(at="result", caught_by="http.answers.logprobs", slow=True)
def likeliest_are_told_last(result: StepResult, step: Step, late: LateInputs | None) -> StepResult:
    """The likeliest tokens are told in the wrong order."""
    return replace(
        result, top_ids=result.top_ids[..., ::-1], top_logprobs=result.top_logprobs[..., ::-1]
    )


@defect(at="step", caught_by="http.answers.repeated", slow=True)
def cached_prompts_are_elsewhere(step: Step) -> Step:
    """Rows that start behind cached blocks are taken to start at their first token."""
    positions = step.positions.copy()
    for row, slot in enumerate(step.slots.tolist()):
        if slot in {init.slot for init in step.slot_init}:
            positions[step.query_start[row]] = 0
    return replace(step, positions=positions)


@defect(at="step", caught_by="http.answers.completions", stateful=True, slow=True)
def every_step_has_other_noise() -> Callable[[Step], Step]:
    """A seed counts for one step only, so that no draw repeats."""
    steps: list[int] = []

    def changed(step: Step) -> Step:
        steps.append(step.step_id)
        return replace(step, seeds=step.seeds + np.uint64(len(steps)))

    return changed


@defect(at="step", caught_by="http.streams.together", slow=True)
def seeds_are_of_the_row_below(step: Step) -> Step:
    """Requests at once draw with each other's seeds."""
    return replace(step, seeds=np.roll(step.seeds, 1))


@defect(at="result", caught_by="http.streams.native", stateful=True, slow=True)
def every_other_answer_is_another() -> Callable[[StepResult, Step, LateInputs | None], StepResult]:
    """The second of two equal requests gets other tokens."""
    starts: list[int] = []

    def changed(result: StepResult, step: Step, late: LateInputs | None) -> StepResult:
        starts.extend(init.slot for init in step.slot_init)
        shift = 1 if len(starts) % 2 else 0
        return replace(result, tokens=np.maximum(result.tokens - shift, 5).astype(np.int32))

    return changed
