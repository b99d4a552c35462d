"""Marked texts: torch's green lists, engines that apply them, and that the mark is found."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infercore import LLM, SamplingParams
from infercore.hub import demo_path
from infercore.watermark import Watermark, detect
from infercore.worker.sampling_ops import SMALL_HASH, green
from tiny_models import make_tiny

FORCED = Watermark(2**64 - 3, 0.25, 100.0)  # none but green tokens can come
PROMPT = [5, 77, 901, 33, 8, 450, 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights: whatever comes is nearly as likely as anything else."""
    path = tmp_path_factory.mktemp("random")
    make_tiny(path, vocab_size=1000, num_hidden_layers=1)
    shutil.copy(demo_path() / "tokenizer.json", path)
    return path


@pytest.mark.parametrize("vocab", [1, 2, 3, 5, 4096, 4 * SMALL_HASH + 3])
def test_lists_of_torch_are_those_of_the_definition(vocab: int) -> None:
    """Both ways to hash: NumPy's for few words, torch's for many."""
    marks = [Watermark(key, gamma) for key in (0, 2**64 - 1) for gamma in (0.001, 0.5, 0.999)]
    contexts = torch.tensor([[0], [1], [2**31 - 1], [7], [7], [4095]])
    keys = np.array([mark.key for mark in marks], np.uint64)
    thresholds = torch.tensor([[mark.threshold] for mark in marks], dtype=torch.int32)
    found = green(keys, thresholds, contexts, vocab).numpy()
    for mark, context, row in zip(marks, contexts[:, 0].tolist(), found, strict=True):
        np.testing.assert_array_equal(row, mark.green_list(context, vocab))


def marked(llm: LLM, mark: Watermark, seed: int = 0, length: int = 40) -> list[int]:
    """The last token of the prompt, which is the first context, and those that came."""
    params = SamplingParams(seed=seed, max_tokens=length, ignore_eos=True, watermark=mark)
    [done] = llm.generate(PROMPT, params, progress=False)
    return [PROMPT[-1], *done.token_ids]


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "float16", "step_ahead": False},
        {"dtype": "float32", "max_batch_tokens": 3},  # the prompt comes in chunks
        {"dtype": "float32", "backend": "sim"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_token_is_green_whatever_computes_it(folder: Path, options: dict[str, Any]) -> None:
    with LLM(folder, threads=1, max_model_len=64, **options) as llm:
        found = detect(FORCED, marked(llm, FORCED))
        assert found.green == found.judged > 30
        free = detect(FORCED, marked(llm, Watermark(1)))
        assert free.green < free.judged / 2, "it is not this key's"


def test_only_the_rows_that_ask_are_marked(folder: Path) -> None:
    with LLM(folder, threads=1, dtype="float32", max_model_len=64) as llm:
        plain = SamplingParams(seed=3, max_tokens=30, ignore_eos=True)
        alone = llm.generate(PROMPT, plain, progress=False)[0].token_ids
        mixed = [plain, SamplingParams(max_tokens=30, ignore_eos=True, watermark=FORCED), plain]
        one, other, last = llm.generate([PROMPT] * 3, mixed, progress=False)
        assert one.token_ids == last.token_ids == alone
        found = detect(FORCED, [PROMPT[-1], *other.token_ids])
        assert found.green == found.judged


def found_of(llm: LLM, texts: int) -> float:
    """The share of 200-token texts at temperature 1 whose p-value is below 1e-4."""
    mark, random = Watermark(5), np.random.default_rng(0)
    prompts = random.integers(3, llm.info.vocab_size, (texts, 4)).tolist()
    params = [
        SamplingParams(seed=seed, max_tokens=200, ignore_eos=True, watermark=mark)
        for seed in range(texts)
    ]
    done = llm.generate(prompts, params, progress=False)
    return float(np.mean([detect(mark, each.token_ids).p_value < 1e-4 for each in done]))


@pytest.mark.parametrize(
    "texts", [pytest.param(10, id="few"), pytest.param(200, marks=pytest.mark.slow, id="many")]
)
def test_texts_of_a_random_model_are_found(folder: Path, texts: int) -> None:
    with LLM(folder, threads=1, dtype="float32", max_model_len=256) as llm:
        share = found_of(llm, texts)
    print(f"{100 * share:.1f} % of {texts} texts are found")
    assert share >= 0.99
