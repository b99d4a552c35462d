"""Only planned shapes run; what compiling them takes is counted, and stops at the deadline."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercore.backend import Backend
from infercore.errors import StepFailed
from infercore.executor import Bucket
from infercore_sim.backend import SimBackend
from infercore_sim.rules import RuleBroken
from model_runs import prompt, quiet
from sim_device import device, padded, run
from stepper import Sequenced

SMALL, LARGE = Bucket(16, 4, 4), Bucket(64, 8, 8)


@pytest.mark.parametrize("attention", [SimBackend.attention, Backend.attention])
def test_a_planned_shape_says_what_the_unpadded_step_says(
    folder: Path, attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With core's own attention too, which a static backend may keep."""
    monkeypatch.setattr(SimBackend, "attention", attention)
    results = []
    for words in ("", "dynamic-tokens,dynamic-rows,dynamic-blocks"):
        with device(folder, words) as sim:
            sim.plan(SMALL, LARGE)
            stepper = sim.stepper()
            rows = [Sequenced(0, prompt(30)), Sequenced(3, prompt(5))]
            tokens = []
            for bucket in (LARGE, SMALL, SMALL):
                counts = [(row, len(row.ids) - row.done) for row in rows]
                step = stepper.step(counts, logprobs=2)
                result = run(sim.executor, step if words else padded(step, bucket))
                for row, token in zip(rows, result.tokens[:, 0], strict=False):
                    row.ids.append(int(token))
                tokens.append(result)
            results.append(tokens)
    for static, dynamic in zip(*results, strict=True):
        assert static.tokens[:2].tolist() == dynamic.tokens.tolist()
        assert static.status[:2].tolist() == dynamic.status.tolist()
        assert not static.n_tokens[2:].any()
        np.testing.assert_allclose(static.top_logprobs[:2], dynamic.top_logprobs, atol=1e-5)


def test_an_unplanned_shape_fails_its_step_and_no_other(folder: Path) -> None:
    with device(folder, "") as sim:
        step = sim.stepper().step([(Sequenced(0, prompt(9)), 9)])
        with pytest.raises(StepFailed, match="none of the 0 shapes"):
            sim.executor.submit(padded(step, SMALL))
        sim.plan(SMALL)
        with pytest.raises(StepFailed, match="step 1 has 9 tokens, 1 rows, 1 blocks") as caught:
            sim.executor.submit(step)
        assert not caught.value.retryable
        for other in (Bucket(24, 4, 4), Bucket(16, 8, 4), Bucket(16, 4, 8)):
            with pytest.raises(StepFailed, match="none of the 1 shapes"):
                sim.executor.submit(padded(step, other))
        assert run(sim.executor, padded(step, SMALL)).n_tokens.tolist() == [1, 0, 0, 0]


def test_only_static_dimensions_are_looked_at(folder: Path) -> None:
    with device(folder, "dynamic-rows,dynamic-blocks") as sim:
        sim.plan(Bucket(16, 1, 1))
        stepper = sim.stepper()
        for rows in (4, 7):
            step = stepper.step([(Sequenced(0, prompt(9)), 9)])
            run(sim.executor, padded(step, Bucket(16, rows, rows)))
        assert sim.executor.shapes.compiles == 1


def test_warm_up_begins_nothing_after_the_deadline(folder: Path) -> None:
    with device(folder, "compile-100") as sim:
        calls: list[tuple[str, int, int]] = []
        shapes = sim.executor.shapes
        buckets = [SMALL, SMALL, LARGE, Bucket(256, 8, 8)]
        warm = sim.executor.warm_up(
            buckets, time.monotonic() + 150, lambda *call: calls.append(call)
        )
        assert warm == 3
        assert calls == [("warm up", done, 4) for done in range(4)]
        assert (shapes.compiles, shapes.seconds) == (2, 200.0)
        # what is compiled stays compiled, and the rest may follow later
        assert sim.executor.warm_up(buckets, time.monotonic() + 50, quiet) == 4
        assert (shapes.compiles, shapes.seconds) == (3, 300.0)


def test_the_first_bucket_is_compiled_whatever_it_takes(folder: Path) -> None:
    with device(folder, "compile-100") as sim:
        assert sim.executor.warm_up([LARGE, SMALL], time.monotonic() - 1, quiet) == 1


@pytest.mark.parametrize("bucket", [Bucket(12, 4, 4), Bucket(16, 3, 4), Bucket(16, 4, 0)])
def test_a_bucket_that_the_device_cannot_have_breaks_the_contract(
    folder: Path, bucket: Bucket
) -> None:
    with device(folder, "") as sim, pytest.raises(RuleBroken, match="no multiple of"):
        sim.plan(bucket)


@pytest.mark.parametrize("words", ["", "no-graph"])
def test_a_captured_step_is_one_launch_and_any_other_one_per_operation(
    folder: Path, words: str
) -> None:
    with device(folder, words) as sim:
        sim.plan(SMALL, LARGE)
        graphs, stepper = sim.executor.graphs, sim.stepper()
        for number, bucket in enumerate((SMALL, LARGE, SMALL)):
            run(sim.executor, padded(stepper.step([(Sequenced(number, prompt(9)), 9)]), bucket))
        if words:
            assert graphs.captures == 0
            assert graphs.launches > 3 * len(sim.spec.layers)
        else:
            assert (graphs.captures, graphs.launches) == (2, 3)


def test_a_step_of_a_shape_that_was_not_captured_is_launched_by_its_operations(
    folder: Path,
) -> None:
    """A dimension that needs no planning has sizes that warm-up did not see."""
    with device(folder, "dynamic-tokens") as sim:
        sim.plan(SMALL)
        step = sim.stepper().step([(Sequenced(0, prompt(9)), 9)])
        run(sim.executor, padded(step, Bucket(17, 4, 4)))
        assert sim.executor.graphs.launches > len(sim.spec.layers)
