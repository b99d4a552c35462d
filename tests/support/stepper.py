"""Drives one step after another by hand: the little of an engine that a test of a model needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infercore.executor import ExecutorConfig, KVGroup, KVGroups, Weights
from infercore.model_folder import read_config
from infercore.model_spec import ModelSpec
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry
from infercore.sampling import SamplingParams
from infercore.step import NO_LOGPROBS, SlotInit, Step
from infercore.worker.dense_format import DenseFormat
from infercore.worker.loader import open_weights

GREEDY = SamplingParams(temperature=0.0)


def executor_config(**overrides: Any) -> ExecutorConfig:
    values: dict[str, Any] = {
        "dtype": "float32",
        "kv_dtype": "float32",
        "block_size": 16,
        "max_num_seqs": 8,
        "max_batch_tokens": 256,
        "max_model_len": 512,
        "threads": 1,
    }
    return ExecutorConfig(**{**values, **overrides})


def open_model(path: Path) -> tuple[ModelSpec, Weights]:
    """The spec and the weights of a model folder."""
    spec = ModelRegistry(register_models()).build(read_config(path))
    return spec, open_weights(path, spec, DenseFormat(spec.quantization))


@dataclass
class Sequenced:
    """A sequence by hand: its ids, how many are in the cache, and its blocks per group."""

    slot: int
    ids: list[int]
    done: int = 0
    blocks: list[list[int]] = field(default_factory=list)


class Stepper:
    """Makes steps and hands out blocks, in a seeded random order, per group.

    It keeps every block of a sequence, but gives the executor 0 for those that left a window.
    """

    def __init__(self, groups: KVGroups, num_blocks: int, seed: int = 0) -> None:
        self.groups = groups
        random = np.random.default_rng(seed)
        self._free = [(1 + random.permutation(num_blocks - 1)).tolist() for _ in groups]
        self._step_id = 0

    def step(
        self,
        rows: Sequence[tuple[Sequenced, int]],
        *,
        sources: dict[int, int] | None = None,
        sampling: SamplingParams = GREEDY,
        logprobs: int = NO_LOGPROBS,
        targets: bool = False,
        late: bool = False,
    ) -> Step:
        """A step that computes the next `count` tokens of each sequence; advances `done`.

        sources: {row: row of the step before}, for rows whose one token is not known here yet.
        """
        sources = sources or {}
        ids, source, wanted, starts = [], [], [], [0]
        positions: list[int] = []
        slots: list[list[int]] = [[] for _ in self.groups]
        fresh: list[list[int]] = [[] for _ in self.groups]
        inits = []
        for row, (sequence, count) in enumerate(rows):
            if sequence.done == 0:
                sequence.blocks = [[] for _ in self.groups]
                inits.append(self._init(sequence, sampling))
            stop = sequence.done + count
            span = range(sequence.done, stop)
            positions += span
            ids += [0] if row in sources else sequence.ids[sequence.done : stop]
            source += [sources.get(row, -1)] * count
            following = sequence.ids[sequence.done + 1 : stop + 1]
            wanted += [*following, *[-1] * (count - len(following))] if targets else [-1] * count
            for number, group in enumerate(self.groups):
                blocks = sequence.blocks[number]
                while len(blocks) * group.block_size < stop:
                    blocks.append(self._free[number].pop())
                    fresh[number].append(blocks[-1])
                slots[number] += [
                    blocks[p // group.block_size] * group.block_size + p % group.block_size
                    for p in span
                ]
            sequence.done = stop
            starts.append(len(ids))
        self._step_id += 1
        count = len(rows)
        return Step(
            step_id=self._step_id,
            token_ids=np.array(ids, np.int32),
            token_source=np.array(source, np.int32),
            positions=np.array(positions, np.int32),
            slot_mapping=np.array(slots, np.int32),
            prompt_targets=np.array(wanted, np.int32),
            slots=np.array([s.slot for s, _ in rows], np.int32),
            query_start=np.array(starts, np.int32),
            context_len=np.array([s.done for s, _ in rows], np.int32),
            block_table=self._tables([s for s, _ in rows], np.diff(starts)),
            sample=np.array(
                [s.done >= len(s.ids) or row in sources for row, (s, _) in enumerate(rows)]
            ),
            seeds=np.array([s.slot + 7 for s, _ in rows], np.uint64),
            sample_positions=np.array([s.done for s, _ in rows], np.int32),
            adapter=np.zeros(count, np.int32),
            num_logprobs=np.full(count, logprobs, np.int32),
            max_tokens=np.ones(count, np.int32),
            slot_init=tuple(inits),
            fresh_blocks=tuple(np.array(blocks, np.int32) for blocks in fresh),
            late=late,
        )

    @staticmethod
    def _init(sequence: Sequenced, sampling: SamplingParams) -> SlotInit:
        nothing = np.zeros(0, np.int32)
        prompt = np.array(sequence.ids, np.int32)
        return SlotInit(sequence.slot, sampling, prompt, nothing, nothing)

    def _tables(self, rows: Sequence[Sequenced], counts: Any) -> Any:
        width = max(len(blocks) for row in rows for blocks in row.blocks)
        table = np.zeros((len(self.groups), len(rows), width), np.int32)
        for number, group in enumerate(self.groups):
            for row, (sequence, count) in enumerate(zip(rows, counts, strict=True)):
                first = self._first_block(group, sequence.done - int(count))
                blocks = sequence.blocks[number]
                table[number, row, first : len(blocks)] = blocks[first:]
        return table

    @staticmethod
    def _first_block(group: KVGroup, position: int) -> int:
        if group.window is None:
            return 0
        return max(0, position + 1 - group.window) // group.block_size
