"""Runs a model folder step by step, and holds what it says against transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infercore.backend import Backend
from infercore.worker.model_runner import ModelRunner
from infercore_cpu.backend import CpuBackend
from stepper import Sequenced, Stepper, executor_config, open_model
from tiny_models import VOCAB

TOKENS = 64
PROMPTS = (1, 15, 16, 17, 200)
BLOCKS = 128


def quiet(phase: str, done: int, total: int) -> None:
    del phase, done, total


def load(path: Path, backend: Backend | None = None, **overrides: Any) -> ModelRunner:
    backend = backend or CpuBackend()
    backend.configure(executor_config(**overrides))
    spec, weights = open_model(path)
    runner = ModelRunner(backend, spec, weights, backend.config, quiet)
    runner.allocate([BLOCKS] * len(runner.groups))
    return runner


def prompt(length: int) -> list[int]:
    return [(31 * i + 7 * length) % VOCAB for i in range(length)]


@torch.inference_mode()
def greedy(
    runner: ModelRunner, lengths: Sequence[int], tokens: int = TOKENS, chunk: int = 10**6
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """(ids, logits [tokens, V]) per prompt, decoded together; prefill in chunks."""
    stepper = Stepper(runner.groups, BLOCKS, seed=len(lengths))
    rows = [Sequenced(slot, prompt(length)) for slot, length in enumerate(lengths)]
    logits: list[list[torch.Tensor]] = [[] for _ in rows]
    while any(len(of_row) < tokens for of_row in logits):
        active = [row for row in rows if len(logits[row.slot]) < tokens]
        step = stepper.step([(row, min(chunk, len(row.ids) - row.done)) for row in active])
        hidden = runner.forward(step).hidden[torch.from_numpy(step.query_start[1:] - 1)]
        for row, scores in zip(active, runner.model.head(hidden), strict=True):
            if row.done == len(row.ids):
                logits[row.slot].append(scores)
                row.ids.append(int(scores.argmax()))
    return [row.ids for row in rows], [torch.stack(of_row) for of_row in logits]


@torch.inference_mode()
def check(oracle: Any, ids: list[int], logits: torch.Tensor, tolerance: float = 1e-4) -> None:
    """By induction over the tokens: each is the oracle's choice after those before it."""
    expected = oracle(torch.tensor([ids[:-1]])).logits[0, -len(logits) :]
    assert ids[-len(logits) :] == expected.argmax(-1).tolist()
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
