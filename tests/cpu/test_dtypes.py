"""16-bit checkpoints: in float32 exactly, and near it in their own dtype."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infercore.kinds import Dense
from infercore.worker.model_runner import ModelRunner
from infercore_cpu import backend as cpu
from infercore_cpu import host
from infercore_cpu.backend import CpuBackend
from infercore_cpu.linear import FEWEST, MOST, CpuLinear
from model_runs import check, greedy, load, prompt
from stepper import Sequenced, Stepper
from tiny_models import FAMILIES, make_tiny

# of the largest logit: two layers round at each of their products
ROUNDING = {torch.bfloat16: 0.06, torch.float16: 0.01}
DTYPES = list(ROUNDING)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that multiplies every 16-bit dtype; torch does so on any, only slowly."""
    monkeypatch.setattr(cpu, "NATIVE", {})


@torch.inference_mode()
def prefill_logits(runner: ModelRunner, length: int) -> torch.Tensor:
    """Of every position, with the second half in a step of its own."""
    stepper = Stepper(runner.groups, 128)
    row = Sequenced(0, prompt(length))
    steps = (stepper.step([(row, count)]) for count in (length // 2, length - length // 2))
    return torch.cat([runner.model.head(runner.forward(step).hidden) for step in steps])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_16_bit_checkpoint_in_float32(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    oracle = make_tiny(tmp_path, family, dtype=dtype)
    for ids, logits in zip(*greedy(load(tmp_path), (1, 40), tokens=12), strict=True):
        check(oracle, ids, logits)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_16_bit_checkpoint_in_its_dtype(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    oracle = make_tiny(tmp_path, family, dtype=dtype)
    runner = load(tmp_path, dtype=name_of(dtype), kv_dtype=name_of(dtype))
    assert runner.config.dtype == name_of(dtype)
    assert all(buffer.dtype in (dtype, torch.float32) for buffer in runner.model.buffers())
    logits = prefill_logits(runner, 90)
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt(90)])).logits[0]
    assert (logits - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES], ids=name_of)
@pytest.mark.parametrize("rows", [0, 1, FEWEST - 1, FEWEST, MOST, MOST + 1])
def test_a_product_of_any_height(rows: int, dtype: torch.dtype) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    product = CpuLinear(Dense(weight, "float32"), torch.device("cpu"), name_of(dtype))
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(1))
    y = product(x.to(dtype))
    assert (y.dtype, y.is_contiguous()) == (dtype, True)
    expected = x.double() @ torch.from_numpy(weight).double().T
    tolerance = {torch.float32: 1e-5, **ROUNDING}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_16_bit_cache_under_float32_compute(tmp_path: Path, dtype: torch.dtype) -> None:
    oracle = make_tiny(tmp_path, "llama", dtype=dtype)
    runner = load(tmp_path, kv_dtype=name_of(dtype))
    logits = prefill_logits(runner, 90)
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt(90)])).logits[0]
    assert (logits - expected).abs().max() <= ROUNDING[dtype] / 4 * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_cpu_without_the_dtype_widens_it_and_keeps_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"avx2"}))
    make_tiny(tmp_path, "llama", dtype=dtype)
    backend = CpuBackend()
    runner = load(tmp_path, backend, dtype=name_of(dtype), kv_dtype=name_of(dtype))
    assert (backend.config.dtype, backend.config.kv_dtype) == ("float32", name_of(dtype))
    assert all(buffer.dtype == torch.float32 for buffer in runner.model.buffers())
    full = 2 * runner.spec.kv_bytes_per_token(1) * runner.config.block_size
    assert [group.bytes_per_block for group in runner.groups] == [full]
