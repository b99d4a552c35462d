"""The simulated device with a tiny model on it, and steps padded by hand."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercore.executor import Bucket, Executor, KVGroups
from infercore.step import NO_LOGPROBS, Step, StepResult
from infercore_sim.backend import SimBackend
from infercore_sim.executor import SimExecutor
from infercore_sim.options import SimOptions
from model_runs import BLOCKS, quiet
from stepper import Stepper, executor_config, open_model

DYNAMIC = "dynamic-tokens,dynamic-rows,dynamic-blocks"


class Device:
    """A started executor, and a stepper for its KV groups."""

    def __init__(self, folder: Path, words: str, **config: Any) -> None:
        self.backend = SimBackend(SimOptions.parse(words))
        executor = self.backend.executor()
        assert isinstance(executor, SimExecutor)
        self.executor = executor
        spec, weights = open_model(folder)
        self.spec = spec
        self.groups: KVGroups = executor.load(spec, weights, executor_config(**config), quiet)
        executor.allocate_kv({group.name: BLOCKS for group in self.groups})

    def stepper(self, seed: int = 0) -> Stepper:
        return Stepper(self.groups, BLOCKS, seed)

    def plan(self, *buckets: Bucket) -> None:
        self.executor.warm_up(buckets, time.monotonic() + 600, quiet)


@contextmanager
def device(folder: Path, words: str = DYNAMIC, **config: Any) -> Iterator[Device]:
    made = Device(folder, words, **config)
    yield made
    made.executor.shutdown()


def run(executor: Executor, step: Step) -> StepResult:
    return executor.submit(step).result(30)


def padded(step: Step, bucket: Bucket) -> Step:
    """The step in the shape of `bucket`: rows of one token on block 0, then tokens of no row."""
    rows, tokens = bucket.rows - step.num_rows, bucket.tokens - step.num_tokens
    assert 0 <= rows <= tokens
    assert step.block_table.shape[-1] <= bucket.blocks
    free = sorted(set(range(bucket.rows)) - set(step.slots.tolist()))
    ones = np.ones(rows, np.int32)
    return replace(
        step,
        token_ids=_longer(step.token_ids, tokens, 0),
        token_source=_longer(step.token_source, tokens, -1),
        positions=_longer(step.positions, tokens, 0),
        slot_mapping=_longer(step.slot_mapping, tokens, 0),
        prompt_targets=_longer(step.prompt_targets, tokens, -1),
        slots=np.concatenate([step.slots, np.array(free[:rows], np.int32)]),
        query_start=np.concatenate(
            [step.query_start, step.num_tokens + ones.cumsum(dtype=np.int32)]
        ),
        context_len=np.concatenate([step.context_len, ones]),
        block_table=_longer(
            _taller(step.block_table, rows), bucket.blocks - step.block_table.shape[-1], 0
        ),
        sample=_longer(step.sample, rows, 0),
        seeds=_longer(step.seeds, rows, 0),
        sample_positions=np.concatenate([step.sample_positions, ones]),
        adapter=_longer(step.adapter, rows, 0),
        num_logprobs=_longer(step.num_logprobs, rows, NO_LOGPROBS),
        max_tokens=np.concatenate([step.max_tokens, ones]),
    )


def _longer(array: NDArray[Any], count: int, value: int) -> NDArray[Any]:
    width = [(0, 0)] * (array.ndim - 1) + [(0, count)]
    return np.pad(array, width, constant_values=value)


def _taller(table: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.pad(table, [(0, 0), (0, rows), (0, 0)])
