"""Every weight kind in shares, and parts of different kinds in one product."""

import itertools
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from infercore.executor import Weights
from infercore.kinds import NF4, Blocks, Codebook4, Dense, IntGrouped, Kind, pack_cells
from infercore.kinds.base import Activation
from infercore.layers.linear import joined
from infercore.model_spec import (
    AttentionSpec,
    LayerSpec,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    Shard,
)
from infercore.worker.parallel import Sharding
from kind_cases import MAKERS, Make, same, seeds
from rank_runs import EIGHT, PROMPTS, assert_same, running, said
from tiny_models import make_tiny


@pytest.mark.parametrize("make", MAKERS)
@given(seed=seeds)
def test_the_shares_of_a_kind_are_the_kind(make: Make, seed: int) -> None:
    """Column and row shares, and those of one matrix that fuses q, k and v."""
    rng = np.random.default_rng(seed)
    case = make(rng, 16, 16)

    class Whole:
        def linear(self, name: str) -> Kind:
            del name
            return case.kind

        def tensor(self, name: str) -> Dense:
            raise AssertionError(name)

    shares = [Sharding(fused_spec(), rank, 2).weights(Whole()) for rank in (0, 1)]
    top, bottom = (share.linear("qkv") for share in shares)
    rows = case.weight
    same(top, np.concatenate([rows[0:4], rows[8:10], rows[12:14]]))
    same(bottom, np.concatenate([rows[4:8], rows[10:12], rows[14:16]]))
    for rank, share in enumerate(shares):
        same(share.linear("out"), rows[:, 4 * rank : 4 * rank + 4])
        same(share.linear("gate"), rows[8 * rank : 8 * rank + 8])


def fused_spec() -> ModelSpec:
    """A layer with 4 heads and 2 KV heads of 2, in one matrix, and an MLP of 16 features."""
    qkv = LinearSpec("qkv", 16, 16, Shard.COLUMN, parts=(8, 4, 4))
    attention = AttentionSpec(4, 2, 2, 1.0, (qkv,), LinearSpec("out", 8, 16, Shard.ROW))
    gate, down = LinearSpec("gate", 16, 16, Shard.COLUMN), LinearSpec("down", 16, 16, Shard.ROW)
    norm = NormSpec("norm", 16, 1e-5)
    layer = LayerSpec(norm, attention, norm, MlpSpec((gate,), down, "silu", False))
    head = LinearSpec("head", 16, 20, Shard.COLUMN)
    return ModelSpec("Fused", 20, 16, 64, "float32", "embedding", (layer,), norm, head, False)


def act_order(rng: np.random.Generator, n: int, k: int) -> Kind:
    """4-bit integers in shuffled groups, as GPTQ's act-order leaves them."""
    groups = 5
    return IntGrouped(
        4,
        pack_cells(rng.integers(0, 16, (n, k), np.uint8)),
        Dense(rng.uniform(0.02, 0.06, (groups, n)).astype(np.float32), "float32"),
        rng.integers(4, 12, (groups, n), np.int16),
        rng.permutation(np.arange(k, dtype=np.int32) % groups),
    )


def nf4(rng: np.random.Generator, n: int, k: int) -> Kind:
    """Blocks of 7, which every share cuts."""
    blocks = Blocks(k, 7)
    scales = Dense(rng.uniform(0.1, 0.5, (n, blocks.count)).astype(np.float32), "float32")
    return Codebook4(pack_cells(rng.integers(0, 16, (n, k), np.uint8)), NF4, blocks, scales)


def mixed(rng: np.random.Generator, n: int, k: int) -> Kind:
    """Any of three, so that q, k and v differ."""
    return MIXED[rng.integers(3)](rng, n, k)


def plain(rng: np.random.Generator, n: int, k: int) -> Kind:
    return Dense(rng.normal(0, 0.2, (n, k)).astype(np.float32), "float32")


MIXED = (act_order, nf4, plain)


class Replaced:
    """A checkpoint whose linear layers hold made kinds, or what those dequantize to."""

    def __init__(
        self, whole: Weights, make: Callable[..., Kind], *, dequantized: bool = False
    ) -> None:
        self.whole = whole
        self.make = make
        self.dequantized = dequantized

    def linear(self, name: str) -> Kind:
        kind = self.make(
            np.random.default_rng(zlib.crc32(name.encode())), *self.whole.linear(name).shape
        )
        return Dense(kind.dequantize(), "float32") if self.dequantized else kind

    def tensor(self, name: str) -> Dense:
        return self.whole.tensor(name)


@pytest.mark.parametrize("make", [act_order, nf4, mixed])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantized_models_say_the_same_on_ranks(
    tmp_path: Path, family: str, make: Callable[..., Kind]
) -> None:
    make_tiny(tmp_path, family, **EIGHT)
    with running(tmp_path, 1, lambda w: Replaced(w, make, dequantized=True)) as executor:
        alone = said(executor, PROMPTS)
    for ranks in (1, 2, 4):
        with running(tmp_path, ranks, lambda w: Replaced(w, make)) as executor:
            assert_same(alone, said(executor, PROMPTS))


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(MAKERS, 2)))
def test_parts_of_any_two_kinds_become_one_matrix(first: Make, second: Make) -> None:
    rng = np.random.default_rng(1)
    cases = [first(rng, 4, 16), second(rng, 6, 16)]
    same(joined([case.kind for case in cases]), np.concatenate([case.weight for case in cases]))


def test_parts_that_differ_keep_what_they_agree_on() -> None:
    rng = np.random.default_rng(0)
    kinds = [act_order(rng, 4, 16), nf4(rng, 6, 16)]
    assert joined(kinds[:1]) is kinds[0]
    alike = [act_order(rng, 4, 16), act_order(rng, 2, 16)]
    assert isinstance(joined(alike), IntGrouped)
    rounded = Activation("int8")
    agreed = joined([replace(kind, activation=rounded) for kind in kinds])  # type: ignore[type-var]
    assert agreed.activation == rounded
    one_rounds = joined([replace(alike[0], activation=rounded), alike[1]])  # type: ignore[type-var]
    assert isinstance(one_rounds, Dense)
    assert one_rounds.activation is None
