"""Executors around a backend's own: one that renames blocks, and one whose steps fail.

They do through the public contract what no backend offers on demand, so every backend can be held
to what follows from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from infercore.capabilities import Capabilities
from infercore.errors import StepFailed
from infercore.executor import (
    Bucket,
    CopyDirection,
    Executor,
    ExecutorConfig,
    Handle,
    KVGroups,
    Memory,
    Probe,
    Progress,
    Weights,
)
from infercore.model_spec import ModelSpec
from infercore.step import Int32, LateInputs, Step, StepResult


class Around(Executor):
    """Passes every call on."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True)

    def capabilities(self) -> Capabilities:
        return self.inner.capabilities()

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        return self.inner.load(spec, weights, config, progress)

    def memory(self) -> Memory:
        return self.inner.memory()

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        self.inner.allocate_kv(num_blocks)

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        return self.inner.warm_up(buckets, deadline, progress)

    def submit(self, step: Step) -> Handle:
        return self.inner.submit(step)

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        return self.inner.copy_blocks(group, src, dst, direction)

    def health(self) -> None:
        self.inner.health()

    def reset(self) -> None:
        self.inner.reset()

    def shutdown(self) -> None:
        self.inner.shutdown()


class Renamed(Around):
    """Every block has another number, drawn from `seed`; block 0 stays 0.

    num_blocks: of each group, block 0 included. block_size: tokens.
    """

    def __init__(
        self, inner: Executor, num_blocks: Sequence[int], block_size: int, seed: int = 0
    ) -> None:
        super().__init__(inner)
        random = np.random.default_rng(seed)
        self._size = np.int32(block_size)
        self._names = [
            np.append(0, 1 + random.permutation(count - 1)).astype(np.int32) for count in num_blocks
        ]

    def submit(self, step: Step) -> Handle:
        block, offset = np.divmod(step.slot_mapping, self._size)
        renamed = replace(
            step,
            slot_mapping=self._all(block) * self._size + offset,
            block_table=self._all(step.block_table),
            fresh_blocks=tuple(
                names[blocks] for names, blocks in zip(self._names, step.fresh_blocks, strict=True)
            ),
        )
        return self.inner.submit(renamed)

    def _all(self, blocks: Int32) -> Int32:
        """Of an array whose first dimension is the group."""
        return np.stack([names[own] for names, own in zip(self._names, blocks, strict=True)])


class Failing(Around):
    """Runs every step, and then says of those that `fails` picks that they failed.

    The device has done their work, which is the worst a failed step may leave: keys are written,
    and slots have counted a token. failures: how many there were.
    """

    def __init__(
        self, inner: Executor, fails: Callable[[Step], bool], *, kv_intact: bool = True
    ) -> None:
        super().__init__(inner)
        self.failures = 0
        self._fails = fails
        self._kv_intact = kv_intact

    def submit(self, step: Step) -> Handle:
        handle = self.inner.submit(step)
        if not self._fails(step):
            return handle
        self.failures += 1
        return _Failed(handle, StepFailed("on demand", kv_intact=self._kv_intact))


class _Failed(Handle):
    def __init__(self, handle: Handle, error: StepFailed) -> None:
        self._handle, self._error = handle, error

    def sample(self, late: LateInputs) -> None:
        self._handle.sample(late)

    def result(self, timeout: float | None = None) -> StepResult:
        self._handle.result(timeout)
        raise self._error
