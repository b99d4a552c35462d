"""The bare model loop: the very steps that an engine submitted, run again without the engine.

Rows, positions, blocks and sampling are the same by construction, so the difference in time is
what scheduling, building steps and updating sequences cost.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

from infercore.executor import Executor, Handle
from infercore.step import Step


@contextmanager
def recorded(executor: Executor) -> Iterator[list[Step]]:
    """Copies of all steps that are submitted while this is open."""
    steps: list[Step] = []
    submit = executor.submit

    def record(step: Step) -> Handle:
        steps.append(deepcopy(step))  # its arrays are reused once its result returned
        return submit(step)

    executor.submit = record  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        del executor.submit  # the class's own method shows again


@dataclass(frozen=True, slots=True)
class BareRun:
    """Seconds of decode steps: of the loop around them, and on the device as it reports them.

    tokens: what every row of every step chose, in order.
    """

    decode_seconds: float
    device_seconds: float
    tokens: list[int]


def replay(executor: Executor, steps: Sequence[Step], depth: int) -> BareRun:
    """Run recorded steps, `depth` of them in flight, and time those after the last prefill."""
    prefills = [step.num_tokens > step.num_rows or bool(step.slot_init) for step in steps]
    last_prefill = max(i for i, prefill in enumerate(prefills) if prefill)
    flights: deque[Handle] = deque()
    tokens: list[int] = []
    began, device, done = time.perf_counter(), 0.0, 0
    for submitted in range(len(steps) + depth - 1):
        if submitted < len(steps):
            flights.append(executor.submit(steps[submitted]))
        if submitted < depth - 1:
            continue
        result = flights.popleft().result()
        tokens += result.tokens[result.n_tokens > 0, 0].tolist()
        if done == last_prefill:
            began = time.perf_counter()
        elif done > last_prefill:
            device += sum(result.seconds.values())
        done += 1
    return BareRun(time.perf_counter() - began, device, tokens)
