"""A model on several ranks says what it says on one: threads, real checkpoints, every family."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infercore.errors import UnsupportedModel
from infercore.executor import ExecutorConfig
from infercore.hub import demo_path
from infercore.kinds import Dense
from infercore.sampling import SamplingParams
from infercore.step import LateInputs
from infercore.worker.parallel import Sharding
from infercore.worker.torch_executor import TorchExecutor
from infercore_cpu.backend import CpuBackend
from model_runs import BLOCKS, prompt, quiet
from rank_runs import EIGHT, PROMPTS, ThreadedBackend, assert_same, running, said
from stepper import Sequenced, Stepper, executor_config, open_model
from tiny_models import FAMILIES, VOCAB, make_tiny

WARM = SamplingParams(temperature=1.3, top_p=0.9, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, "llama", **EIGHT)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_on_two_and_four_ranks(tmp_path: Path, family: str) -> None:
    """On four its two KV heads are held twice, but for GPT-2's eight."""
    make_tiny(tmp_path, family, **EIGHT)
    with running(tmp_path, 1) as executor:
        alone = said(executor, PROMPTS)
    for ranks in (2, 4):
        with running(tmp_path, ranks) as executor:
            assert_same(alone, said(executor, PROMPTS))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("llama", {"vocab_size": 163}),
        ("gpt2", {"vocab_size": 161}),
        ("gemma2", {"num_key_value_heads": 8, "vocab_size": 162}),
    ],
)
def test_biases_count_once_and_vocabularies_need_not_divide(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    make_tiny(tmp_path, family, **{**EIGHT, **settings})
    with running(tmp_path, 1) as executor:
        alone = said(executor, PROMPTS)
    with running(tmp_path, 4) as executor:
        assert_same(alone, said(executor, PROMPTS))


def test_the_demo_says_the_same_on_two_ranks() -> None:
    with running(demo_path(), 1) as executor:
        alone = said(executor, (5, 40), tokens=8)
    with running(demo_path(), 2) as executor:
        assert_same(alone, said(executor, (5, 40), tokens=8))


def test_a_16_bit_model_runs_on_ranks(folder: Path) -> None:
    """Sums of shares round differently, so only what is far from a tie is compared."""
    with running(folder, 1, dtype="bfloat16", kv_dtype="bfloat16") as executor:
        alone = said(executor, (30,), tokens=1)
    with running(folder, 2, dtype="bfloat16", kv_dtype="bfloat16") as executor:
        found = said(executor, (30,), tokens=1)
    np.testing.assert_allclose(found[1][0], alone[1][0], atol=0.15)


def test_a_rank_holds_its_share(folder: Path) -> None:
    """Bytes of a block are a rank's; a KV head that two ranks hold counts at both."""
    weights, blocks = {}, {}
    for ranks in (1, 2, 4):
        with running(folder, ranks) as executor:
            blocks[ranks] = executor.runner.groups[0].bytes_per_block
            memory = executor.memory()
            assert memory.total == 2**30 - (ranks - 1)  # the rank with the least
            weights[ranks] = memory.weights
    assert blocks[1] == 2 * blocks[2] == 2 * blocks[4]
    norms = 5 * 48 * 4
    rope = 2 * 512 * 8 * 4
    assert weights[2] == (weights[1] + norms + rope) // 2


def test_the_ranks_load_one_after_another_and_report_as_one(folder: Path) -> None:
    executor = TorchExecutor(ThreadedBackend())
    spec, weights = open_model(folder)
    calls: list[tuple[str, int, int]] = []
    executor.load(spec, weights, executor_config(ranks=2), lambda *call: calls.append(call))
    executor.shutdown()
    total = calls[-1][2]
    assert calls[-1] == ("load", total, total)
    assert calls == sorted(calls)
    assert {call[2] for call in calls} == {total}


def test_what_a_rank_does_not_hold_is_not_read(folder: Path) -> None:
    """What it holds are views of the mapped file, until the backend packs them."""
    spec, weights = open_model(folder)
    mine = Sharding(spec, 1, 2).weights(weights)
    attention = spec.layers[0].attention
    for linear in (*attention.qkv, attention.out, spec.layers[0].mlp.down, spec.head):
        kind, whole = mine.linear(linear.name), weights.linear(linear.name)
        assert isinstance(kind, Dense)
        assert isinstance(whole, Dense)
        assert kind.data.size * 2 == whole.data.size
        assert not kind.data.flags.owndata
    assert not mine.tensor(spec.embedding).data.flags.owndata


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        (4, {}, "over 4 ranks, because it has 6 attention heads, .*; use 1 or 2$"),
        (3, {}, "3 ranks, because it has 2 KV heads, neither .* of 3; use 1 or 2$"),
        (6, {}, "6 ranks, because its MLPs have 80 features, .*; use 1 or 2$"),
        (6, {"vocab_size": 9, "intermediate_size": 72}, "9 tokens leaves the last one nothing"),
        (0, {}, "because there must be at least one; use 1 or 2$"),
    ],
)
def test_counts_that_do_not_divide_are_refused(
    tmp_path: Path, ranks: int, settings: dict[str, Any], message: str
) -> None:
    make_tiny(tmp_path, "llama", **settings)
    with pytest.raises(UnsupportedModel, match=message), running(tmp_path, ranks):
        pass


def test_a_backend_that_joins_no_group_serves_one_rank(folder: Path) -> None:
    executor = TorchExecutor(CpuBackend())
    spec, weights = open_model(folder)
    with pytest.raises(UnsupportedModel, match="cpu serves a model on one rank only, and 2 are"):
        executor.load(spec, weights, executor_config(ranks=2), quiet)
    executor.shutdown()
    with pytest.raises(UnsupportedModel, match="cpu joins no process group, 2 ranks need one"):
        CpuBackend().collective(2)
    alone = CpuBackend().collective(1)
    x = torch.arange(3.0)
    assert torch.equal(alone.all_reduce(x), x)
    assert torch.equal(alone.all_gather(x, 0), x)
    assert ExecutorConfig("float32", "float32", 16, 1, 1, 1).ranks == 1


def test_tokens_ahead_and_late_inputs_reach_every_rank(folder: Path) -> None:
    """A rank knows the token ahead from its own sampling, so all must have drawn the same."""

    def tokens(ranks: int) -> list[int]:
        with running(folder, ranks) as executor:
            stepper = Stepper(executor.runner.groups, BLOCKS)
            row = Sequenced(0, prompt(20))
            handles = [executor.submit(stepper.step([(row, 20)], sampling=WARM, late=True))]
            handles[0].sample(only(77))
            found = []
            for _ in range(4):
                step = stepper.step([(row, 1)], sources={0: 0})
                handles.append(executor.submit(step))
                found.append(int(handles.pop(0).result(30).tokens[0, 0]))
            return [*found, int(handles.pop().result(30).tokens[0, 0])]

    alone = tokens(1)
    assert alone[0] == 77
    assert tokens(2) == tokens(4) == alone


def only(token: int) -> LateInputs:
    """A mask that allows the one row this token only."""
    mask = np.zeros((1, -(-VOCAB // 32)), np.uint32)
    mask[0, token // 32] = 1 << token % 32
    return LateInputs(np.zeros(1, np.int32), mask, np.zeros(1, np.bool_))
