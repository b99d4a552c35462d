"""The example executor in NumPy: the contract needs no torch, for any model family."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercore.executor import Executor
from infercore.sampling import SamplingParams
from infercore_cpu.backend import CpuBackend
from infercore_numpy.executor import NumpyExecutor
from model_runs import BLOCKS, prompt, quiet
from stepper import Sequenced, Stepper, executor_config, open_model
from tiny_models import FAMILIES, make_tiny

SEEDED = SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.2, seed=3)


def run(executor: Executor, folder: Path) -> tuple[list[list[int]], list[Any]]:
    """(ids, log-probabilities of the choices) of three rows, prefilled in chunks of seven."""
    spec, weights = open_model(folder)
    groups = executor.load(spec, weights, executor_config(), quiet)
    executor.allocate_kv({group.name: BLOCKS for group in groups})
    stepper = Stepper(groups, BLOCKS)
    rows = [Sequenced(slot, prompt(length)) for slot, length in enumerate((1, 17, 40))]
    wanted, logprobs = [len(row.ids) + 6 for row in rows], []
    while any(len(row.ids) < want for row, want in zip(rows, wanted, strict=True)):
        active = [row for row, want in zip(rows, wanted, strict=True) if len(row.ids) < want]
        step = stepper.step([(row, min(7, len(row.ids) - row.done)) for row in active])
        step.num_logprobs[:] = 3
        result = executor.submit(step).result()
        for index, row in enumerate(active):
            if row.done == len(row.ids):
                row.ids.append(int(result.tokens[index, 0]))
                logprobs.append(result.top_logprobs[index, 0])
    executor.shutdown()
    return [row.ids for row in rows], logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_torch_says(family: str, tmp_path: Path) -> None:
    make_tiny(tmp_path, family)
    ids, logprobs = run(NumpyExecutor(), tmp_path)
    expected_ids, expected = run(CpuBackend().executor(), tmp_path)
    assert ids == expected_ids
    np.testing.assert_allclose(np.array(logprobs), np.array(expected), atol=2e-4)


def test_it_imports_no_torch() -> None:
    code = (
        "import sys, infercore_numpy.executor; "
        "from infercore.engine.engine import Engine; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
