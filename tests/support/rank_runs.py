"""Ranks that are threads, and what a model says on one or several of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercore.backend import Backend, PackedLinear
from infercore.capabilities import Capabilities
from infercore.executor import Executor, Probe, Weights
from infercore.layers.ops import Ops
from infercore.worker.thread_group import THREADS
from infercore.worker.torch_executor import TorchExecutor
from model_runs import BLOCKS, prompt, quiet
from stepper import Sequenced, Stepper, executor_config, open_model

Float32 = NDArray[np.float32]

PROMPTS = (1, 17, 70)
EIGHT: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2}  # for four ranks


class FaultyOps(Ops):
    """Raises `fault`, if there is one, in the product that `countdown` products precede."""

    def __init__(self) -> None:
        self.fault: BaseException | None = None
        self.countdown = 0

    def linear(self, x: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
        if self.fault is not None:
            self.countdown -= 1
            if self.countdown < 0:
                fault, self.fault = self.fault, None
                raise fault
        return super().linear(x, weight, bias)


class ThreadedBackend(Backend):
    """The least that a backend is, on torch's "cpu" device, as many times as there are ranks."""

    name: ClassVar[str] = "threaded"

    def __init__(self) -> None:
        self.own_ops = FaultyOps()

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True)

    def device(self, rank: int) -> torch.device:
        assert rank == self.rank
        return torch.device("cpu")

    def memory(self) -> tuple[int, int]:
        return 2**30 - self.rank, 0  # ranks differ, as real devices do

    def ops(self) -> Ops:
        return self.own_ops

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), max_in_flight=2, collectives=(THREADS,))


@contextmanager
def running(
    folder: Path,
    ranks: int,
    wrap: Callable[[Weights], Weights] = lambda weights: weights,
    **config: Any,
) -> Iterator[TorchExecutor]:
    """The model of `folder`, with cache, on that many ranks. wrap: changes what is loaded."""
    executor = TorchExecutor(ThreadedBackend())
    try:
        spec, weights = open_model(folder)
        options = executor_config(ranks=ranks, **config)
        groups = executor.load(spec, wrap(weights), options, quiet)
        executor.allocate_kv({group.name: BLOCKS for group in groups})
        yield executor
    finally:
        executor.shutdown()


def said(
    executor: TorchExecutor, lengths: Sequence[int], tokens: int = 12, chunk: int = 64
) -> tuple[list[list[int]], list[Float32]]:
    """(ids, log-probabilities [tokens, V]) of greedy decoding, per prompt; all decode together."""
    stepper = Stepper(executor.runner.groups, BLOCKS)
    vocab = executor.runner.spec.vocab_size
    rows = [Sequenced(slot, prompt(length)) for slot, length in enumerate(lengths)]
    found: list[list[Float32]] = [[] for _ in rows]
    while active := [row for row in rows if len(found[row.slot]) < tokens]:
        counts = [(row, min(chunk, len(row.ids) - row.done)) for row in active]
        result = executor.submit(stepper.step(counts, logprobs=vocab)).result(60)
        for number, row in enumerate(active):
            if row.done == len(row.ids):
                logprobs = np.zeros(vocab, np.float32)
                logprobs[result.top_ids[number, 0]] = result.top_logprobs[number, 0]
                found[row.slot].append(logprobs)
                row.ids.append(int(result.tokens[number, 0]))
    return [row.ids for row in rows], [np.stack(of_row) for of_row in found]


def assert_same(
    expected: tuple[list[list[int]], list[Float32]], found: tuple[list[list[int]], list[Float32]]
) -> None:
    """The same tokens, and the same distributions but for rounding."""
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def first_token(executor: Executor, stepper: Stepper, slot: int, length: int) -> int:
    """What a prompt of its own continues with."""
    step = stepper.step([(Sequenced(slot, prompt(length)), length)])
    return int(executor.submit(step).result(60).tokens[0, 0])
