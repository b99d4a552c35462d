"""The model itself, held against a decoder in NumPy that knows nothing of caches and batches."""

import numpy as np
import pytest

from infercore_conformance import check, thorough
from infercore_conformance.fixtures import Models, Numerics, Start
from infercore_conformance.reference import Reference
from infercore_conformance.running import open_model
from infercore_conformance.steps import Row, prompt
from infercore_conformance.tolerances import logprobs_bound

LENGTH = 60  # beyond the window of the models that have one, and across blocks
FORCED = [11, 7, 140, 3, 90, 28]


@check(
    "executor.model.reference", "Log-probabilities are those of the model, in prefill and decode."
)
@pytest.mark.parametrize("length", [LENGTH, pytest.param(300, marks=thorough)])
def test_the_model_is_its_spec(
    start: Start, models: Models, architecture: str, length: int, numerics: Numerics
) -> None:
    """In float64, from the ModelSpec alone: scale, window, soft cap, groups of heads, positions."""
    folder = models(architecture)
    running = start(folder)
    [found] = running.forced(running.stepper(), [Row(0, prompt(length))], [FORCED], chunk=200)
    reference = Reference(*open_model(folder)).logprobs([*prompt(length), *FORCED])
    difference = np.abs(found - reference[length - 1 :]).max()
    numerics.record("logprobs_max_abs", float(difference), logprobs_bound(running.config.dtype))


@check("executor.model.dtypes", "In every declared dtype the distribution is near the right one.")
def test_every_dtype_is_near(start: Start, models: Models, dtype: str, numerics: Numerics) -> None:
    """The report shows the KL divergence from float64, in nats; the table bounds single values."""
    running = start(models(), dtype=dtype, kv_dtype=dtype)
    [found] = running.forced(running.stepper(), [Row(0, prompt(LENGTH))], [FORCED])
    reference = Reference(*open_model(models())).logprobs([*prompt(LENGTH), *FORCED])
    expected = reference[LENGTH - 1 :].astype(np.float64)
    kl = (np.exp(expected) * (expected - found)).sum(axis=-1).max()
    numerics.record(f"kl_{dtype}", float(kl))
    near = np.abs(found - expected)[expected > np.log(1e-3)].max()  # tails are all rounding
    numerics.record(f"logprobs_max_abs_{dtype}", float(near), logprobs_bound(dtype))
