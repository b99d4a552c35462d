"""What lets the CPU promise bits: its float32 head, and steps whose indices are checked once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.kinds import Dense
from infercore.step import Step
from infercore_cpu import native
from infercore_cpu.backend import CpuBackend
from infercore_cpu.rows import RowsLinear
from model_runs import BLOCKS, load, prompt
from native_library import library, using
from stepper import Sequenced, Stepper, executor_config
from tiny_models import make_tiny

LIB = library()


@pytest.mark.parametrize("isa", native.isas(LIB))
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(1, 130), m=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_float32_head_gives_a_row_the_same_bits_in_any_company(
    isa: str, n: int, k: int, m: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    linear = RowsLinear(Dense(rng.standard_normal((n, k)).astype(np.float32), "float32"), LIB)
    x = torch.from_numpy(rng.standard_normal((m, k)).astype(np.float32))
    with using(LIB, isa):
        alone = torch.cat([linear(row[None]) for row in x])
    with using(LIB, isa, threads=3):
        assert torch.equal(linear(x), alone)
    torch.testing.assert_close(alone, x @ linear.weight.T, atol=1e-4, rtol=0)


def test_a_large_head_is_shared_out() -> None:
    backend = CpuBackend()
    backend.configure(executor_config(threads=2))
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((5003, 96)).astype(np.float32)
    head = backend.pack_head(Dense(weight, "float32"))
    assert isinstance(head, RowsLinear)
    x = torch.from_numpy(rng.standard_normal((7, 96)).astype(np.float32))
    torch.testing.assert_close(head(x), x @ torch.from_numpy(weight).T, atol=1e-4, rtol=0)
    assert bool(backend.capabilities().batch_invariant)


def slot(step: Step) -> None:
    step.slot_mapping[0, 2] = BLOCKS * 16


def negative_slot(step: Step) -> None:
    step.slot_mapping[0, 2] = -1


def block(step: Step) -> None:
    step.block_table[0, 0, 1] = BLOCKS


def context(step: Step) -> None:
    step.context_len[0] = 16 * step.block_table.shape[2] + 1


def short_context(step: Step) -> None:
    step.context_len[0] = 19


def queries(step: Step) -> None:
    step.query_start[1] = 21


WRONG: dict[str, tuple[Callable[[Step], None], str]] = {
    "slot": (slot, "slot_mapping names a slot of a block that was not allocated"),
    "negative slot": (negative_slot, "slot_mapping names a slot"),
    "block": (block, "block_table names a block that was not allocated"),
    "context": (context, "context_len is less than a row's tokens, or more than its blocks hold"),
    "short context": (short_context, "context_len is less than a row's tokens"),
    "queries": (queries, "query_start does not count the step's tokens upwards from 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
@torch.inference_mode()
def test_an_index_out_of_range_is_refused(tmp_path: Path, wrong: str) -> None:
    make_tiny(tmp_path, "llama")
    runner = load(tmp_path)
    step = Stepper(runner.groups, BLOCKS).step([(Sequenced(0, prompt(20)), 20)])
    runner.forward(step)
    change, message = WRONG[wrong]
    change(step)
    with pytest.raises(ValueError, match=f"KV group {runner.groups[0].name}: {message}"):
        runner.forward(step)
