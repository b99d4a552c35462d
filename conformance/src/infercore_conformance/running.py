"""An executor with a tiny model in it, ready for steps: what most checks start from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infercore.capabilities import Capabilities
from infercore.engine.buckets import Buckets, largest_step, plan_buckets
from infercore.executor import Bucket, Executor, ExecutorConfig, Handle, KVGroups
from infercore.formats import quantization_method
from infercore.model_folder import ModelFolder
from infercore.model_spec import ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.step import Float32, Step, StepResult
from infercore.worker.loader import open_checkpoint, open_weights
from infercore_conformance.models import VOCAB, families, formats
from infercore_conformance.padding import PaddedHandle, padded
from infercore_conformance.steps import Row, Stepper
from infercore_conformance.subject import Subject

BLOCKS = 64  # of every group
TIMEOUT = 30.0  # seconds for one step of a tiny model
WARM_UP = 600.0  # seconds for compiling the few shapes that the suite uses
MAX_SEQS, MAX_TOKENS, MAX_LENGTH = 8, 256, 512


def quiet(phase: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""
    del phase, done, total


def config_for(can: Capabilities, **overrides: Any) -> ExecutorConfig:
    """A small configuration that is legal for what is declared; float32 where there is a choice."""
    best = "float32" if "float32" in can.dtypes else can.dtypes[0]
    dtype = overrides.get("dtype", best)
    kv_dtype = can.kv_dtypes[0]
    largest = largest_step(can.static_dimensions, MAX_SEQS, MAX_TOKENS)
    values: dict[str, Any] = {
        "dtype": dtype,
        "kv_dtype": dtype if kv_dtype == "auto" else kv_dtype,
        "block_size": can.block_sizes[0],
        "max_num_seqs": largest.rows,
        "max_batch_tokens": largest.tokens,
        "max_model_len": MAX_LENGTH,
    }
    return ExecutorConfig(**{**values, **overrides})


@dataclass
class Running:
    """A loaded executor. `groups` are its KV groups, each with `BLOCKS` blocks allocated.

    buckets: the shapes that it was warmed for; steps are padded into them as the engine does it.
    """

    executor: Executor
    spec: ModelSpec
    groups: KVGroups
    config: ExecutorConfig
    capabilities: Capabilities
    buckets: Buckets

    @classmethod
    def start(cls, subject: Subject, folder: Path, config: ExecutorConfig) -> "Running":
        """Load, measure, allocate and warm up, in the order that the contract fixes."""
        executor = subject.executor()
        try:
            can = executor.capabilities()
            spec, weights = open_model(folder)
            groups = executor.load(spec, weights, config, quiet)
            executor.memory()
            executor.allocate_kv({group.name: BLOCKS for group in groups})
            shapes = _shapes(can, config)
            executor.warm_up(shapes, time.monotonic() + WARM_UP, quiet)
        except BaseException:
            executor.shutdown()
            raise
        buckets = Buckets.of(can.static_dimensions, shapes)
        return cls(executor, spec, groups, config, can, buckets)

    def stepper(self, seed: int = 0) -> Stepper:
        """A new one: call it once per check, or blocks are handed out twice."""
        return Stepper(self.groups, BLOCKS, seed)

    def padded(self, step: Step) -> Step:
        """The step that `submit` submits; a padded one stays what it is."""
        shape = self.buckets.fit(step.num_tokens, step.num_rows, step.block_table.shape[-1])
        return padded(step, shape)

    def submit(self, step: Step) -> Handle:
        """Padded where the device needs it; the result then has the rows of `step` only."""
        whole = self.padded(step)
        return PaddedHandle(self.executor.submit(whole), whole)

    def run(self, step: Step) -> StepResult:
        """Submit and wait."""
        return self.submit(step).result(TIMEOUT)

    def generate(self, stepper: Stepper, rows: Sequence[Row], tokens: int) -> list[list[int]]:
        """Decode `tokens` tokens of each row together; appends to `ids`, returns the new ones."""
        for _ in range(tokens):
            result = self.run(stepper.step([(row, len(row.ids) - row.done) for row in rows]))
            for row, token in zip(rows, result.tokens[:, 0].tolist(), strict=True):
                row.ids.append(token)
        return [row.ids[-tokens:] for row in rows]

    def forced(
        self, stepper: Stepper, rows: Sequence[Row], tokens: Sequence[Sequence[int]], chunk: int = 0
    ) -> Float32:
        """Log-probabilities float32 [rows, n, V], by id: at the end of each prompt, and after each
        of tokens[row], which stand for what was chosen. n = 1 + their number.

        So two computations are compared at every position, whatever either would have chosen.
        chunk: most tokens of a prompt per step; 0 = all.
        """
        found = [
            [_by_id(r, n) for n in range(len(rows))] for r in [self._prefill(stepper, rows, chunk)]
        ]
        for column in zip(*tokens, strict=True):
            for row, token in zip(rows, column, strict=True):
                row.ids.append(token)
            result = self.run(stepper.step([(row, 1) for row in rows], logprobs=VOCAB))
            found.append([_by_id(result, n) for n in range(len(rows))])
        return np.array(found, np.float32).swapaxes(0, 1)

    def _prefill(self, stepper: Stepper, rows: Sequence[Row], chunk: int) -> StepResult:
        """The result of the step in which all prompts, of equal length, end."""
        while True:
            left = len(rows[0].ids) - rows[0].done
            count = min(left, chunk or left)
            result = self.run(stepper.step([(row, count) for row in rows], logprobs=VOCAB))
            if count == left:
                return result


def _by_id(result: StepResult, row: int) -> Float32:
    """A row's log-probabilities in the order of ids, from those of all tokens, likeliest first."""
    ids, values = result.top_ids[row, 0], result.top_logprobs[row, 0]
    if sorted(ids.tolist()) != list(range(VOCAB)):
        raise AssertionError(
            f"row {row}: the {VOCAB} likeliest ids are not the {VOCAB} ids there are"
        )
    by_id = np.empty(VOCAB, np.float32)
    by_id[ids] = values
    return by_id


def _shapes(can: Capabilities, config: ExecutorConfig) -> Sequence[Bucket]:
    """The largest bucket of core's plan, which holds any step, and the smallest."""
    largest = largest_step(can.static_dimensions, MAX_SEQS, MAX_TOKENS)
    widest = -(-config.max_model_len // config.block_size)
    planned = plan_buckets(can.static_dimensions, largest, widest)
    return [*planned[:1], *planned[1:][-1:]]


def open_model(folder: Path) -> tuple[ModelSpec, Any]:
    """The spec and the weights of a model folder, read by the installed format that detects it."""
    opened = ModelFolder.open(folder)
    spec = ModelRegistry(families()).build(opened.config)
    spec = replace(spec, quantization=opened.quantization())
    stored = {} if spec.quantization else open_checkpoint(folder).shapes()
    method = quantization_method(formats(), spec, None, stored)
    return spec, open_weights(folder, spec, method)
