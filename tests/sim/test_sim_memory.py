"""The allocator of the simulated device: exact counts, a ceiling that holds, nothing that leaks."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from infercore import LLM, SamplingParams
from infercore.errors import MemoryBudgetError, StepFailed
from infercore.hub import DEMO
from infercore.sampling import RowStatus
from infercore_sim.backend import SimBackend
from infercore_sim.executor import SimExecutor
from infercore_sim.memory import MIB, DeviceMemory, OutOfMemory
from infercore_sim.options import VARIABLE
from model_runs import BLOCKS, prompt
from sim_device import DYNAMIC, Device, device, run
from stepper import Sequenced, Stepper, executor_config
from tiny_models import make_tiny


def make_wide(path: Path) -> None:
    """A vocabulary that makes a row's logits 120 kB."""
    make_tiny(path, "llama", vocab_size=30_000)


def test_an_allocator_counts_storages_once_and_until_they_are_freed() -> None:
    with DeviceMemory(10_000) as memory:
        first = torch.zeros(1000)
        assert memory.used == 4000
        view = first.view(10, 100)[3:]
        view += 1
        del first
        assert memory.used == 4000
        double = view.double()
        assert memory.used == 4000 + 5600
        with pytest.raises(OutOfMemory, match="800 bytes more than the 9600 in use"):
            torch.add(double[0], 1.0)
        del double, view
        assert memory.used == 0
        assert memory.take_peak() == 9600
        assert memory.take_peak() == 0
    with memory:
        host = torch.from_numpy(np.ones(9)).view(3, 3)
        assert memory.used == 0
        assert (host + 1).shape == (3, 3)


def test_memory_is_what_was_allocated(folder: Path) -> None:
    with device(folder, memory_budget=64 * MIB) as sim:
        memory = sim.executor.memory()
        assert memory.total == 64 * MIB
        total, before = sim.backend.memory()
        assert total == memory.total
        assert memory.weights <= before < memory.weights + memory.workspace
        sim.executor.allocate_kv({group.name: BLOCKS for group in sim.groups})
        cache = sum(BLOCKS * group.bytes_per_block for group in sim.groups)
        one_block = sum(group.bytes_per_block for group in sim.groups)
        assert sim.backend.memory()[1] == before + cache - one_block


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_allocator_agrees_with_what_memory_says(tmp_path: Path, dtype: str) -> None:
    """Weights neither less nor more, to 2 %; blocks and the step's workspace to the byte."""
    make_tiny(tmp_path, "llama", vocab_size=4000)
    with device(tmp_path, dtype=dtype, kv_dtype=dtype) as sim:
        memory = sim.executor.memory()
        one_block = sum(group.bytes_per_block for group in sim.groups)
        in_use = sim.backend.memory()[1]
        assert in_use - one_block == pytest.approx(memory.weights, rel=0.02)
        for blocks in (BLOCKS, 3 * BLOCKS):
            sim.executor.allocate_kv({group.name: blocks for group in sim.groups})
            assert sim.backend.memory()[1] - in_use == (blocks - 1) * one_block


@pytest.mark.parametrize("vocab_size", [160, 4000])
def test_every_step_fits_beside_what_memory_said_is_free(tmp_path: Path, vocab_size: int) -> None:
    """A whole context in chunks beside decodes: the last chunk, or its reports, take most."""
    make_tiny(tmp_path, "llama", vocab_size=vocab_size)
    sampling = SamplingParams(top_p=0.9, repetition_penalty=1.1)
    blocks = 40
    with device(tmp_path, max_batch_tokens=120, max_num_seqs=3) as sim:
        memory = sim.executor.memory()
        sim.executor.allocate_kv({group.name: blocks for group in sim.groups})
        kv = sum(blocks * group.bytes_per_block for group in sim.groups)
        sim.backend.peak_memory()
        stepper = Stepper(sim.groups, blocks)
        long, *short = (Sequenced(slot, prompt(472 if slot == 0 else 9)) for slot in range(3))
        for at in range(4):
            rows = [(row, 1) for row in short] + [(long, 118)]
            step = stepper.step(rows, sampling=sampling, logprobs=20, targets=True)
            assert RowStatus.NOT_FINITE not in run(sim.executor, step).status, at
        assert sim.backend.peak_memory() <= memory.weights + memory.workspace + kv


def test_what_does_not_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    make_wide(tmp_path)
    arithmetic = r"weights.*simulated device's 2097152 \(2 MiB\)"
    with pytest.raises(MemoryBudgetError, match=arithmetic):
        Device(tmp_path, f"{DYNAMIC},memory-2")
    with device(tmp_path, f"{DYNAMIC},memory-18") as sim:
        with pytest.raises(MemoryBudgetError, match="the KV cache of this model: out of memory"):
            sim.executor.allocate_kv({group.name: 10**9 for group in sim.groups})
        with pytest.raises(MemoryBudgetError, match="workspace of this model"):
            sim.executor.memory()


def test_a_step_that_does_not_fit_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    make_wide(tmp_path)
    with device(tmp_path, f"{DYNAMIC},memory-16", max_num_seqs=64) as sim:
        stepper = sim.stepper()
        rows = [(Sequenced(slot, prompt(3)), 3) for slot in range(48)]
        before = sim.backend.memory()[1]
        with pytest.raises(StepFailed, match="48 rows, 144 tokens.* out of memory: ") as caught:
            run(sim.executor, stepper.step(rows))
        assert caught.value.retryable
        del caught  # its traceback holds the step's tensors
        gc.collect()
        assert run(sim.executor, stepper.step([(Sequenced(0, prompt(3)), 3)])).n_tokens.all()
        assert sim.backend.memory()[1] <= before + 64  # the row's token, for who follows it


def test_an_engine_that_fills_the_memory_neither_fails_a_step_nor_leaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "memory-52")
    sampling = SamplingParams(
        seed=3, top_p=0.9, repetition_penalty=1.2, prompt_logprobs=3, max_tokens=3, ignore_eos=True
    )
    with LLM(DEMO, backend="sim", dtype="float32", max_num_seqs=4, max_model_len=64) as llm:
        executor = llm._launched.executor
        assert isinstance(executor, SimExecutor)
        used = []
        for _ in range(3):
            llm.generate([list(range(9, 49))] * 5, sampling, progress=False)
            used.append(executor.backend.memory()[1])
        assert used[1] == used[2]
        assert llm.stats.failed_steps == 0
        assert executor.backend.peak_memory() <= 52 * MIB


def test_a_backend_without_an_executor_counts_nothing(folder: Path) -> None:
    """Where someone else's thread configures it, that thread's tensors are its own."""
    backend = SimBackend()
    backend.configure(executor_config())
    kept = torch.zeros(1000)
    assert backend.memory()[1] == 0
    del kept
