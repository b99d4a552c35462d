"""Steps in the shapes that a device was warmed for, as the engine pads them.

Behind the step's own come rows of one token on block 0, whose slot is NO_SLOT, and then tokens of
no row. What a device yields for them is ignored.
"""

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infercore.executor import Bucket, Handle
from infercore.step import NO_LOGPROBS, NO_SLOT, LateInputs, Step, StepResult

_Scalar = TypeVar("_Scalar", bound=np.generic)


def padded(step: Step, shape: Bucket) -> Step:
    """`step` in the larger `shape`; itself, with its own arrays, if it has that shape."""
    rows, tokens = shape.rows - step.num_rows, shape.tokens - step.num_tokens
    width = shape.blocks - step.block_table.shape[-1]
    if not (rows or tokens or width):
        return step
    ends = step.query_start[-1] + np.arange(1, rows + 1, dtype=np.int32)
    return replace(
        step,
        token_ids=_longer(step.token_ids, tokens, 0),
        token_source=_longer(step.token_source, tokens, -1),
        positions=_longer(step.positions, tokens, 0),
        slot_mapping=_longer(step.slot_mapping, tokens, 0),
        prompt_targets=_longer(step.prompt_targets, tokens, -1),
        slots=_longer(step.slots, rows, NO_SLOT),
        query_start=np.concatenate([step.query_start, ends]),
        context_len=_longer(step.context_len, rows, 1),
        block_table=np.pad(step.block_table, [(0, 0), (0, rows), (0, width)]),
        sample=_longer(step.sample, rows, False),
        seeds=_longer(step.seeds, rows, 0),
        sample_positions=_longer(step.sample_positions, rows, 1),
        adapter=_longer(step.adapter, rows, 0),
        num_logprobs=_longer(step.num_logprobs, rows, NO_LOGPROBS),
        max_tokens=_longer(step.max_tokens, rows, 1),
    )


class PaddedHandle(Handle):
    """The handle of a padded step, for whoever made it without padding."""

    def __init__(self, handle: Handle, step: Step) -> None:
        self._handle = handle
        self._all_rows = step.num_rows
        self._rows = int((step.slots != NO_SLOT).sum())
        self._tokens = int(step.query_start[self._rows])

    def sample(self, late: LateInputs) -> None:
        drop = _longer(late.drop, self._all_rows - len(late.drop), True)
        self._handle.sample(replace(late, drop=drop))

    def result(self, timeout: float | None = None) -> StepResult:
        whole = self._handle.result(timeout)
        rows, tokens = slice(self._rows), slice(self._tokens)
        return replace(
            whole,
            tokens=whole.tokens[rows],
            n_tokens=whole.n_tokens[rows],
            status=whole.status[rows],
            logprobs=whole.logprobs[rows],
            top_ids=whole.top_ids[rows],
            top_logprobs=whole.top_logprobs[rows],
            prompt_logprobs=_up_to(whole.prompt_logprobs, tokens),
            prompt_top_ids=_up_to(whole.prompt_top_ids, tokens),
            prompt_top_logprobs=_up_to(whole.prompt_top_logprobs, tokens),
        )


def _longer(array: NDArray[_Scalar], count: int, value: Any) -> NDArray[_Scalar]:
    """More of `value` along the last dimension."""
    width = [(0, 0)] * (array.ndim - 1) + [(0, count)]
    return np.pad(array, width, constant_values=value)


def _up_to(array: NDArray[_Scalar] | None, part: slice) -> NDArray[_Scalar] | None:
    return None if array is None else array[part]
