"""Captured steps: what a replay keeps of the step that it was captured with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from infercore.executor import Bucket, Executor, Handle
from infercore.step import Int32, Step, StepResult
from planted.defect import defect, replaced

if TYPE_CHECKING:
    from planted.catalogue.late import Late

Allocate = Callable[[Mapping[str, int]], None]
Submit = Callable[[Step], Handle]


def _shape(step: Step) -> Bucket:
    return Bucket(step.num_tokens, step.num_rows, step.block_table.shape[-1])


@defect(at="step", caught_by="executor.capture.inputs", stateful=True, base="sim")
def positions_are_captured() -> Callable[[Step], Step]:
    """A replay has the positions of the step that its shape was captured with."""
    captured: dict[Bucket, Int32] = {}

    def changed(step: Step) -> Step:
        return replace(step, positions=captured.setdefault(_shape(step), step.positions.copy()))

    return changed


@defect(at="Executor", caught_by="executor.capture.cache", base="sim")
def the_first_cache_is_captured(executor: Executor) -> None:
    """A graph reads the cache that it was captured with, which is gone when there is another."""
    caches: list[Mapping[str, int]] = []

    def allocate(right: Allocate, num_blocks: Mapping[str, int]) -> None:
        caches.append(num_blocks)
        right(num_blocks)

    def submit(right: Submit, step: Step) -> Handle:
        gone = caches[-1] != caches[0]
        return right(replace(step, block_table=0 * step.block_table) if gone else step)

    replaced(replaced(executor, "allocate_kv", allocate), "submit", submit)


@defect(at="result", caught_by="executor.capture.once", stateful=True, base="sim")
def shapes_are_captured_in_traffic() -> Callable[[StepResult, Step, "Late"], StepResult]:
    """A shape is captured by the first step that has it, and not by warm-up."""
    captured: set[Bucket] = set()

    def told(result: StepResult, step: Step, late: "Late") -> StepResult:
        new = _shape(step) not in captured
        captured.add(_shape(step))
        return replace(result, seconds={**result.seconds, "capture": 2.0 * new})

    return told
