"""Several tokens of a row in one step: the device runs its own choices through the model again."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from infercore.sampling import RowStatus
from infercore.step import Int32, Step, StepResult

Compute: TypeAlias = Callable[[Step], StepResult]
Scalar = TypeVar("Scalar", bound=np.generic)


class Lookahead:
    """Continues steps whose rows may yield more than one token, a token of each row at a time.

    The blocks that these tokens need are in the step's block table. A row ends early with the
    first of its stop ids, or where its status is not OK.
    """

    def __init__(self) -> None:
        self._stop_ids: dict[int, Int32] = {}  # by slot
        self._yielded: Int32 | None = None  # by row, where the executor ran another step since

    def begun(self, step: Step) -> Step:
        """The step, with the tokens in it that only the device knows by now."""
        self._stop_ids |= {init.slot: init.stop_ids.copy() for init in step.slot_init}
        if self._yielded is None:
            return step
        follows = step.token_source >= 0
        ids = step.token_ids.copy()
        ids[follows] = self._yielded[step.token_source[follows]]
        return replace(step, token_ids=ids, token_source=np.full_like(ids, -1))

    def finished(self, step: Step, first: StepResult, size: int, compute: Compute) -> StepResult:
        """All tokens of `step`, of which `first` holds one of each row. size: of a block."""
        most = int(step.max_tokens.max())
        result = replace(
            first,
            tokens=_wider(first.tokens, most),
            logprobs=_wider(first.logprobs, most),
            top_ids=_wider(first.top_ids, most),
            top_logprobs=_wider(first.top_logprobs, most),
        )
        self._yielded = None
        for count in range(1, most):
            goes_on = (result.n_tokens == count) & (result.status == RowStatus.OK)
            goes_on &= (step.max_tokens > count) & ~self._ends(step, result.tokens[:, count - 1])
            rows = np.flatnonzero(goes_on)
            if not len(rows):
                break
            self._yielded = first.tokens[:, 0]
            more = compute(_next_step(step, rows, result.tokens[rows, count - 1], count, size))
            result.tokens[rows, count] = more.tokens[:, 0]
            result.n_tokens[rows] += more.n_tokens
            result.status[rows] = more.status
            result.logprobs[rows, count] = more.logprobs[:, 0]
            shown = more.top_ids.shape[-1]
            result.top_ids[rows, count, :shown] = more.top_ids[:, 0]
            result.top_logprobs[rows, count, :shown] = more.top_logprobs[:, 0]
        return result

    def _ends(self, step: Step, tokens: Int32) -> NDArray[np.bool_]:
        slots = step.slots.tolist()
        return np.array(
            [t in self._stop_ids.get(s, ()) for s, t in zip(slots, tokens.tolist(), strict=True)]
        )


def _wider(array: NDArray[Scalar], most: int) -> NDArray[Scalar]:
    """[R, 1, …] → [R, most, …], the rest zero."""
    out = np.zeros((len(array), most, *array.shape[2:]), array.dtype)
    out[:, :1] = array
    return out


def _next_step(step: Step, rows: NDArray[np.int64], ids: Int32, count: int, size: int) -> Step:
    """One token for each of `rows`, which have `count` more tokens than when the step began."""
    positions = step.context_len[rows] + np.int32(count - 1)
    blocks = step.block_table[:, rows, positions // size]
    return Step(
        step_id=step.step_id,
        token_ids=ids.copy(),
        token_source=np.full(len(rows), -1, np.int32),
        positions=positions,
        slot_mapping=blocks * np.int32(size) + positions % size,
        prompt_targets=np.full(len(rows), -1, np.int32),
        slots=step.slots[rows],
        query_start=np.arange(len(rows) + 1, dtype=np.int32),
        context_len=positions + np.int32(1),
        block_table=step.block_table[:, rows],
        sample=np.ones(len(rows), np.bool_),
        seeds=step.seeds[rows],
        sample_positions=positions + np.int32(1),
        adapter=step.adapter[rows],
        num_logprobs=step.num_logprobs[rows],
        max_tokens=np.ones(len(rows), np.int32),
    )
