"""The engine on the simulated device: it plans, pads, and never sends a shape that is not warm."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infercore import LLM, SamplingParams, launch
from infercore.hub import DEMO
from infercore_sim.executor import SimExecutor

LIMITS = {"max_model_len": 160, "max_num_seqs": 6, "max_batch_tokens": 40, "block_size": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def traffic() -> list[tuple[list[int], SamplingParams]]:
    """Prompts of many lengths, shared beginnings, greedy and seeded."""
    shared = [(5 * i + 3) % 4096 for i in range(35)]
    lengths = [1, 3, 16, 17, 40, 41, 90, 2, 64, 15]
    prompts = [[(31 * i + 7 * n) % 4096 for i in range(n)] for n in lengths]
    prompts += [shared + prompt[:9] for prompt in prompts[:4]]
    return [
        (
            prompt,
            SamplingParams(
                max_tokens=3 + 2 * i, temperature=float(i % 2), seed=i, ignore_eos=True, logprobs=1
            ),
        )
        for i, prompt in enumerate(prompts)
    ]


def answers(llm: LLM) -> list[list[int]]:
    prompts, params = zip(*traffic(), strict=True)
    return [each.token_ids for each in llm.generate(list(prompts), list(params), progress=False)]


@pytest.fixture(scope="module")
def expected() -> Iterator[list[list[int]]]:
    with LLM(DEMO, dtype="float32", backend="cpu", threads=1, **LIMITS) as llm:
        yield answers(llm)


def device(llm: LLM) -> SimExecutor:
    executor = llm._launched.executor
    assert isinstance(executor, SimExecutor)
    return executor


@pytest.mark.parametrize("words", ["", "in-flight-1", "dynamic-rows", "dynamic-tokens,no-late"])
def test_padded_steps_give_the_same_answers(
    expected: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERCORE_SIM", words)
    with LLM(DEMO, dtype="float32", backend="sim", **LIMITS) as llm:
        compiled = device(llm).shapes.compiles
        assert answers(llm) == expected
        assert device(llm).shapes.compiles == compiled, "nothing is compiled while it serves"
        stats = llm.stats
    assert stats.failed_steps == 0
    assert 0 < stats.padded_tokens < 40 * stats.steps
    assert stats.kv_blocks_used == 0


def test_where_time_was_short_the_largest_shape_serves_all(
    expected: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INFERCORE_SIM", "compile-300")
    monkeypatch.setattr(launch, "WARM_UP_SECONDS", 700.0)
    with (
        caplog.at_level(logging.WARNING),
        LLM(DEMO, dtype="float32", backend="sim", **LIMITS) as llm,
    ):
        assert device(llm).shapes.compiles == 3
        assert answers(llm) == expected
    assert "3 of" in caplog.text
    assert "padded into larger ones" in caplog.text


def test_the_next_start_warms_what_this_one_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, params = traffic()[0]
    with LLM(DEMO, dtype="float32", backend="sim", **LIMITS) as llm:
        llm.generate([prompt], params, progress=False)
        used, planned = llm._launched.buckets.uses.copy(), llm._launched.buckets.warm
    assert used
    monkeypatch.setenv("INFERCORE_SIM", "compile-1")
    monkeypatch.setattr(launch, "WARM_UP_SECONDS", 1.0 * (1 + len(used)) + 0.5)
    with LLM(DEMO, dtype="float32", backend="sim", **LIMITS) as llm:
        warm = set(llm._launched.buckets.warm)
    assert warm >= set(used)
    assert len(list(cache.rglob("*.json"))) == 1
    assert len(warm) < len(planned)
