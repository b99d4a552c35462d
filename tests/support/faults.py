"""Failures on demand, for executors that tests plant them in."""

from dataclasses import dataclass

import numpy as np

from infercore.step import Step


@dataclass(frozen=True)
class Fault:
    """Makes steps fail: the one submitted as number `step`, or those with the row of `seed`.

    step: counted from 0. seed: of the row at fault, from the step on that computes `position`.
    nan: its logits are not finite, instead of a failing step. at_submit: `submit` raises.
    named: the error names the row.
    """

    step: int | None = None
    seed: int | None = None
    position: int = 0
    nan: bool = False
    at_submit: bool = False
    named: bool = False
    retryable: bool = True
    kv_intact: bool = True

    def rows(self, step: Step, number: int) -> list[int]:
        """Rows at fault in the step submitted as `number`; all, if it is the step's own fault."""
        if self.step is not None:
            return list(range(step.num_rows)) if number == self.step else []
        hit = (step.seeds == self.seed) & (step.context_len > self.position)
        return np.flatnonzero(hit).tolist()
