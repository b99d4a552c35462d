"""The Executor contract on core's torch executor, over the CPU and a tiny real model."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infercore.backend import PackedLinear
from infercore.errors import ExecutorLost, StepDropped, StepFailed, UnsupportedModel
from infercore.executor import Bucket, CopyDirection, Executor
from infercore.layers.ops import Ops
from infercore.sampling import RowStatus, SamplingParams
from infercore.step import LateInputs, Step, StepResult
from infercore.worker.torch_executor import TorchExecutor
from infercore_cpu import native
from infercore_cpu.backend import CpuBackend
from model_runs import BLOCKS, check, prompt, quiet
from stepper import Sequenced, Stepper, executor_config, open_model
from tiny_models import VOCAB, make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, "mistral")
    return path


class FaultyOps(Ops):
    """Fails in the head's product of the steps that `faults` counts down to."""

    def __init__(self) -> None:
        self.faults: list[Exception] = []

    def logits(self, x: Tensor, head: PackedLinear, softcap: float | None) -> Tensor:
        if self.faults:
            raise self.faults.pop()
        return super().logits(x, head, softcap)


class FaultyBackend(CpuBackend):
    """The CPU, whose operations fail on demand."""

    def __init__(self) -> None:
        self.own_ops = FaultyOps()
        self.lost = False

    def ops(self) -> Ops:
        return self.own_ops

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("the device fell off the bus")


def started(folder: Path, backend: CpuBackend | None = None, **config: Any) -> TorchExecutor:
    executor = TorchExecutor(backend or FaultyBackend())
    spec, weights = open_model(folder)
    groups = executor.load(spec, weights, executor_config(**config), quiet)
    executor.allocate_kv({group.name: BLOCKS for group in groups})
    return executor


@pytest.fixture
def executor(folder: Path) -> Iterator[TorchExecutor]:
    made = started(folder)
    yield made
    made.shutdown()


@pytest.fixture
def ops(executor: TorchExecutor) -> FaultyOps:
    assert isinstance(executor.backend, FaultyBackend)
    return executor.backend.own_ops


def run(executor: Executor, step: Step) -> StepResult:
    return executor.submit(step).result(30)


def late_inputs(rows: int, *, drop: Sequence[int] = (), only: dict[int, int] | None = None) -> Any:
    """only: {row: the one token that its mask allows}."""
    only = only or {}
    masks = np.zeros((len(only), -(-VOCAB // 32)), np.uint32)
    for mask, token in zip(masks, only.values(), strict=True):
        mask[token // 32] = 1 << token % 32
    dropped = np.isin(np.arange(rows), drop)
    return LateInputs(np.array(list(only), np.int32), masks, dropped)


def test_greedy_generation_equals_transformers(folder: Path, tmp_path: Path) -> None:
    oracle = make_tiny(tmp_path, "mistral")
    executor = started(folder)
    stepper = Stepper(executor.runner.groups, BLOCKS)
    row = Sequenced(0, prompt(40))
    while len(row.ids) < 56:
        row.ids.append(
            int(run(executor, stepper.step([(row, len(row.ids) - row.done)])).tokens[0, 0])
        )
    with torch.inference_mode():
        logits = oracle(torch.tensor([row.ids[:-1]])).logits[0, 39:]
    check(oracle, row.ids, logits)
    executor.shutdown()


def test_what_a_result_holds(executor: TorchExecutor) -> None:
    stepper = Stepper(executor.runner.groups, BLOCKS)
    rows = [Sequenced(0, prompt(30)), Sequenced(1, prompt(5))]
    step = stepper.step([(rows[0], 20), (rows[1], 5)], logprobs=3, targets=True)
    result = run(executor, step)
    assert result.step_id == step.step_id
    assert result.status.tolist() == [RowStatus.NOT_SAMPLED, RowStatus.OK]
    assert result.n_tokens.tolist() == [0, 1]
    assert result.tokens.shape == (2, 1)
    assert result.tokens.dtype == np.int32
    assert result.logprobs.dtype == np.float32
    assert result.top_ids.shape == result.top_logprobs.shape == (2, 1, 3)
    assert result.top_ids[1, 0, 0] == result.tokens[1, 0]
    assert result.top_logprobs[1, 0, 0] == pytest.approx(result.logprobs[1, 0])
    assert result.prompt_logprobs is not None
    assert (result.prompt_logprobs < 0).tolist() == (step.prompt_targets >= 0).tolist()
    assert set(result.seconds) == {"forward", "sample"}


def test_prompt_logprobs_are_transformers(folder: Path, tmp_path: Path) -> None:
    """In tiles: more targets than logits exist at once."""
    oracle = make_tiny(tmp_path, "mistral")
    executor = started(folder)
    row = Sequenced(0, prompt(150))
    step = Stepper(executor.runner.groups, BLOCKS).step([(row, 150)], logprobs=2, targets=True)
    result = run(executor, step)
    with torch.inference_mode():
        expected = oracle(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
    assert result.prompt_logprobs is not None
    assert result.prompt_top_ids is not None
    own = expected.gather(1, torch.tensor(row.ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(result.prompt_logprobs[:-1], own, atol=2e-5)
    assert result.prompt_top_ids[:-1].tolist() == expected.topk(2).indices.tolist()
    executor.shutdown()


def test_one_step_ahead_says_the_same(executor: TorchExecutor) -> None:
    """A step that follows its own predecessor's token, submitted before that is known."""
    stepper = Stepper(executor.runner.groups, BLOCKS)

    def first() -> list[Sequenced]:
        return [Sequenced(0, prompt(20)), Sequenced(1, prompt(33))]

    rows, waited = first(), []
    for _ in range(5):
        tokens = run(executor, stepper.step([(r, len(r.ids) - r.done) for r in rows])).tokens[:, 0]
        waited.append(tokens.tolist())
        for row, token in zip(rows, tokens, strict=True):
            row.ids.append(int(token))
    executor.reset()
    rows = first()
    stepper = Stepper(executor.runner.groups, BLOCKS)
    handles = [executor.submit(stepper.step([(row, len(row.ids)) for row in rows]))]
    ahead = []
    for _ in range(4):
        # the rows change places, so the source is the row of the step before
        rows.reverse()
        handles.append(executor.submit(stepper.step([(r, 1) for r in rows], sources={0: 1, 1: 0})))
        ahead.append(handles.pop(0).result(30).tokens[:, 0].tolist())
    ahead.append(handles[0].result(30).tokens[:, 0].tolist())
    assert [tokens[:: (-1) ** i] for i, tokens in enumerate(ahead)] == waited


def test_late_inputs_mask_and_drop(executor: TorchExecutor) -> None:
    stepper = Stepper(executor.runner.groups, BLOCKS)
    rows = [Sequenced(slot, prompt(slot + 3)) for slot in range(3)]
    handle = executor.submit(stepper.step([(row, len(row.ids)) for row in rows], late=True))
    with pytest.raises(TimeoutError):
        handle.result(0.05)
    handle.sample(late_inputs(3, drop=[2], only={1: 77}))
    result = handle.result(30)
    assert result.tokens[1, 0] == 77
    assert result.status.tolist() == [RowStatus.OK, RowStatus.OK, RowStatus.DROPPED]
    assert result.n_tokens.tolist() == [1, 1, 0]


def test_a_step_that_is_not_late_takes_no_late_inputs(executor: TorchExecutor) -> None:
    step = Stepper(executor.runner.groups, BLOCKS).step([(Sequenced(0, prompt(3)), 3)])
    handle = executor.submit(step)
    with pytest.raises(AssertionError, match="late=False"):
        handle.sample(late_inputs(1))
    handle.result(30)


def test_submit_does_not_wait_and_calls_take_effect_in_order(executor: TorchExecutor) -> None:
    """A copy behind a step that waits for its late inputs reads what that step wrote."""
    group = executor.runner.groups[0]
    stepper = Stepper(executor.runner.groups, BLOCKS)
    row = Sequenced(0, prompt(16))
    step = stepper.step([(row, 16)], late=True)
    handle = executor.submit(step)
    block = step.block_table[0, 0, :1].astype(np.int32)
    target = np.array([stepper._free[0].pop()], np.int32)
    copied = executor.copy_blocks(group.name, block, target, CopyDirection.DEVICE_TO_DEVICE)
    with pytest.raises(TimeoutError):
        copied.result(0.05)
    handle.sample(late_inputs(1))
    handle.result(30)
    copied.result(30)
    cache: Any = executor.runner.caches[0]
    assert torch.equal(cache.cache[:, :, :, int(block[0])], cache.cache[:, :, :, int(target[0])])
    assert cache.cache[:, :, :, int(block[0])].abs().sum() > 0


def test_an_unknown_extra_is_refused_before_the_step_runs(executor: TorchExecutor) -> None:
    step = Stepper(executor.runner.groups, BLOCKS).step([(Sequenced(0, prompt(3)), 3)])
    step.extras = {"pixels": np.zeros(1, np.float32)}
    with pytest.raises(StepFailed, match="pixels, which cpu does not know") as caught:
        executor.submit(step)
    assert not caught.value.retryable
    step.extras = {}
    assert run(executor, step).n_tokens.tolist() == [1]


def test_steps_behind_a_failed_one_are_dropped(executor: TorchExecutor, ops: FaultyOps) -> None:
    stepper = Stepper(executor.runner.groups, BLOCKS)
    first = stepper.step([(Sequenced(0, prompt(3)), 3)], late=True)
    second = stepper.step([(Sequenced(1, prompt(4)), 4)])
    ops.faults = [RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    handles = [executor.submit(first), executor.submit(second)]
    handles[0].sample(late_inputs(1))
    with pytest.raises(StepFailed, match=r"1 rows, 3 tokens.*can't allocate") as caught:
        handles[0].result(30)
    assert caught.value.rows is None
    assert caught.value.retryable
    assert caught.value.kv_intact
    with pytest.raises(StepDropped, match=f"step {second.step_id} "):
        handles[1].result(30)
    # once the engine has heard of the failure, its next steps count again
    assert run(executor, stepper.step([(Sequenced(0, prompt(3)), 3)])).n_tokens.tolist() == [1]


def test_a_step_submitted_before_the_failure_was_heard_is_dropped_too(
    executor: TorchExecutor, ops: FaultyOps
) -> None:
    stepper = Stepper(executor.runner.groups, BLOCKS)
    ops.faults = [MemoryError("no memory")]
    failed = executor.submit(stepper.step([(Sequenced(0, prompt(3)), 3)]))
    deadline = time.monotonic() + 30
    while ops.faults and time.monotonic() < deadline:
        time.sleep(0.001)
    behind = executor.submit(stepper.step([(Sequenced(1, prompt(3)), 3)]))
    with pytest.raises(StepFailed, match="no memory"):
        failed.result(30)
    with pytest.raises(StepDropped):
        behind.result(30)
    for again in range(2):  # failures do not add up
        ops.faults = [RuntimeError(f"fault {again}")]
        with pytest.raises(StepFailed, match=f"fault {again}"):
            run(executor, stepper.step([(Sequenced(2, prompt(3)), 3)]))


def test_reset_forgets_slots_and_keeps_the_model(executor: TorchExecutor) -> None:
    def tokens() -> list[int]:
        stepper = Stepper(executor.runner.groups, BLOCKS, seed=5)
        row = Sequenced(0, prompt(20))
        sampling = SamplingParams(repetition_penalty=1.5)
        return [
            int(run(executor, stepper.step([(row, count)], sampling=sampling)).tokens[0, 0])
            for count in (19, 1)
        ]

    before = tokens()
    executor.reset()
    assert tokens() == before


def test_memory_is_what_the_model_and_its_largest_step_take(folder: Path) -> None:
    sizes = {}
    for tokens in (16, 2048):
        executor = started(folder, CpuBackend(), max_batch_tokens=tokens, memory_budget=2**30)
        memory = executor.memory()
        assert memory.total == 2**30
        assert memory.weights == executor.runner.weight_bytes
        assert memory.weights >= 4 * executor.runner.spec.num_parameters
        assert memory.free == memory.total - memory.weights - memory.workspace
        sizes[tokens] = memory.workspace
        # measuring left a cache of block 0; the real one replaces it
        executor.allocate_kv({group.name: BLOCKS for group in executor.runner.groups})
        step = Stepper(executor.runner.groups, BLOCKS).step([(Sequenced(0, prompt(9)), 9)])
        assert run(executor, step).n_tokens.tolist() == [1]
        executor.shutdown()
    assert sizes[2048] < 2**29  # what earlier tests freed may hide all of it


def test_warm_up_reports_its_progress(executor: TorchExecutor) -> None:
    calls: list[tuple[str, int, int]] = []
    buckets = [Bucket(8, 1, 1), Bucket(16, 2, 1)]
    executor.warm_up(buckets, time.monotonic() + 10, lambda *call: calls.append(call))
    assert calls[0] == ("warm up", 0, 2)
    assert calls[-1] == ("warm up", 2, 2)


def test_health_says_when_the_device_is_lost(executor: TorchExecutor) -> None:
    executor.health()
    assert isinstance(executor.backend, FaultyBackend)
    executor.backend.lost = True
    with pytest.raises(ExecutorLost, match=r"cpu does not answer \(the device fell.*restart"):
        executor.health()


def test_shutdown_is_idempotent_and_frees_the_model(folder: Path) -> None:
    executor = started(folder)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(AssertionError, match="no model is loaded"):
        _ = executor.runner
    TorchExecutor(CpuBackend()).shutdown()


def test_probe_and_capabilities_need_no_model() -> None:
    assert TorchExecutor.probe().available
    assert TorchExecutor.probe().devices == (f"torch {torch.__version__}",)
    assert CpuBackend.probe().available
    capabilities = TorchExecutor(CpuBackend()).capabilities()
    assert capabilities.max_in_flight == 2
    assert capabilities.late_inputs
    assert bool(capabilities.batch_invariant) is (native.library() is not None)


def test_layers_that_cannot_share_a_cache_are_refused(folder: Path) -> None:
    spec, weights = open_model(folder)
    other = replace(spec.layers[1].attention, num_kv_heads=3)
    odd = replace(spec, layers=(spec.layers[0], replace(spec.layers[1], attention=other)))
    executor = TorchExecutor(CpuBackend())
    with pytest.raises(UnsupportedModel, match=r"layers \[0, 1\] share a cache"):
        executor.load(odd, weights, executor_config(), quiet)
    executor.shutdown()
