"""In float32 an answer does not depend on its company, nor on how the engine got to it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from infercore import LLM, SamplingParams
from infercore.engine.request import Request
from infercore.hub import DEMO

TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.9, top_k=40, top_p=0.95, seed=11, max_tokens=TOKENS, ignore_eos=True
)
LENGTHS = (1, 2, 15, 16, 17, 31, 40, 90)
PREFIX = [(7 * i + 11) % 4000 + 8 for i in range(48)]  # shared by the longer half of the prompts


def prompts(count: int) -> list[list[int]]:
    """`count` different prompts; those of 40 tokens and more begin alike."""
    made = []
    for index in range(count):
        length = LENGTHS[index % len(LENGTHS)]
        own = [(13 * index + 29 * i) % 4000 + 8 for i in range(length)]
        made.append([*((PREFIX + own)[:length] if length >= 40 else own), index + 8])
    return made


def generate(batch: Sequence[list[int]], params: SamplingParams, **options: Any) -> list[list[int]]:
    with LLM(DEMO, dtype="float32", threads=1, max_model_len=256, **options) as llm:
        return [done.token_ids for done in llm.generate(batch, params, progress=False)]


@cache
def alone(params: str) -> tuple[tuple[int, ...], ...]:
    """The reference: each prompt in a batch of its own, nothing shared, nothing ahead."""
    sampling = {"greedy": GREEDY, "seeded": SEEDED}[params]
    with LLM(
        DEMO, dtype="float32", threads=1, max_model_len=256, prefix_cache=False, step_ahead=False
    ) as llm:
        return tuple(
            tuple(llm.generate([prompt], sampling, progress=False)[0].token_ids)
            for prompt in prompts(32)
        )


WAYS: dict[str, dict[str, Any]] = {
    "batch of 32": {},
    "no step ahead": {"step_ahead": False},
    "no prefix cache": {"prefix_cache": False},
    "chunks of 64": {"max_batch_tokens": 64, "max_num_seqs": 32},
    "chunks of 7": {"max_batch_tokens": 7, "max_num_seqs": 6},
    "chunks of 1": {"max_batch_tokens": 1, "max_num_seqs": 1},
    "preemption": {"num_blocks": 24, "max_num_seqs": 16},
    "preemption, no cache, not ahead": {
        "num_blocks": 20,
        "max_num_seqs": 16,
        "prefix_cache": False,
        "step_ahead": False,
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("params", ["greedy", "seeded"])
def test_the_way_does_not_matter(way: str, params: str) -> None:
    count = 6 if way == "chunks of 1" else 32
    sampling = {"greedy": GREEDY, "seeded": SEEDED}[params]
    found = generate(prompts(count), sampling, **WAYS[way])
    assert [tuple(tokens) for tokens in found] == list(alone(params)[:count])


def test_tight_blocks_do_preempt() -> None:
    """Without this, the preemption cases above could pass for the wrong reason."""
    options = WAYS["preemption"]
    with LLM(DEMO, dtype="float32", threads=1, max_model_len=256, **options) as llm:
        llm.generate(prompts(32), GREEDY, progress=False)
        assert llm.stats.preemptions > 0
        assert llm.stats.kv_blocks_used == 0


def test_the_order_of_arrival_does_not_matter() -> None:
    found = generate(prompts(32)[::-1], SEEDED)
    assert [tuple(tokens) for tokens in found[::-1]] == list(alone("seeded"))


def test_a_second_turn_reads_the_cache_and_says_the_same() -> None:
    prompt = prompts(8)[7]
    with LLM(DEMO, dtype="float32", threads=1, max_model_len=256) as llm:
        first = llm.generate([prompt], GREEDY, progress=False)[0].token_ids
        cached = llm.stats.cached_tokens
        turn = [*prompt, *first, 9, 10]
        second = llm.generate([turn], GREEDY, progress=False)[0].token_ids
        # generated blocks are cached too: all but the last, cut one
        assert llm.stats.cached_tokens - cached >= len(prompt) + len(first) - 2 * 16
    assert generate([turn], GREEDY, prefix_cache=False)[0] == second


@pytest.mark.parametrize("params", ["greedy", "seeded"])
@pytest.mark.parametrize("cut", [1, 10])
def test_a_restarted_engine_continues_where_the_other_died(params: str, cut: int) -> None:
    """prompt ids, output ids and seed are all that a new engine needs."""
    prompt, expected = prompts(8)[6], list(alone(params)[6])
    sampling = {"greedy": GREEDY, "seeded": SEEDED}[params]
    if sampling.seed is None:
        sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, seed=0)
    with LLM(DEMO, dtype="float32", threads=1, max_model_len=256) as llm:
        engine = llm.engine
        engine.add(Request(1, prompt, sampling, output_ids=expected[:cut], attempt=1))
        found = []
        while engine.has_work:
            for output in engine.step():
                assert output.error is None
                found += output.token_ids
    assert found == expected[cut:]
