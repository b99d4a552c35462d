"""What fails on demand in computing, and results that are wrong as if nothing was."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infercore.layers.ops import Ops
from infercore.step import StepResult
from infercore_sim.options import Fault

if TYPE_CHECKING:
    from infercore.backend import PackedLinear

NO_TOKEN_ID = 2**30


class SimOps(Ops):
    """Core's operations. nan_logits: the fault on demand."""

    nan_logits = False

    def logits(self, x: Tensor, head: "PackedLinear", softcap: float | None) -> Tensor:
        logits = super().logits(x, head, softcap)
        return logits.fill_(torch.nan) if self.nan_logits else logits


def spoilt(result: StepResult, fault: Fault | None) -> StepResult:
    """The result, with what the fault makes of it."""
    if fault is Fault.DTYPE:
        return replace(
            result,
            tokens=result.tokens.astype(np.float32),
            logprobs=result.logprobs.astype(np.float64),
        )
    if fault is Fault.GARBAGE:
        return replace(result, tokens=np.full_like(result.tokens, NO_TOKEN_ID))
    if fault is Fault.STEP_ID:
        return replace(result, step_id=result.step_id + 1)
    return result
