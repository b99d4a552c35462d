"""A model on several ranks, against the same model on one. No golden text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercore_conformance import Both, Feature, Level, check, thorough
from infercore_conformance import engine_variations as variations
from infercore_conformance.engine_answers import differing_bits
from infercore_conformance.engine_fixtures import Same, Serve
from infercore_conformance.engine_serving import TOGETHER
from infercore_conformance.engine_traffic import LENGTHS, request
from infercore_conformance.fixtures import Models, Numerics
from infercore_conformance.made_kinds import ALL, Variant
from infercore_conformance.models import VOCAB, served
from infercore_conformance.ranks import HEADS, MANY, forced, of_kind, shared, shares_of
from infercore_conformance.running import Running, config_for
from infercore_conformance.steps import prompt
from infercore_conformance.subject import Subject
from infercore_conformance.tolerances import logprobs_bound

RANKS = pytest.mark.parametrize(
    "ranks", [2, pytest.param(3, marks=thorough), pytest.param(4, marks=thorough)]
)
TWO_KINDS = [
    v for v in ALL if v.name in ("int4_g32_order", "mxfp4")
]  # of small groups and blocks, which cuts go through
HELD = 0.7  # of the whole's bytes that one of two ranks may hold: a half, and what all hold
FAVOUR = 100.0  # so likely that nothing else is chosen


@check(
    "distributed.logprobs",
    "Log-probabilities do not depend on how many ranks share the model.",
    level=Level.EXTENDED,
    needs=MANY,
)
@RANKS
def test_logprobs(
    subject: Subject, models: Models, numerics: Numerics, architecture: str, ranks: int
) -> None:
    """Of all tokens, at the end of prompts that come in chunks and behind forced tokens.

    A sum that misses a rank, counts one twice, or adds a row-parallel layer's bias on each shows.
    """
    folder = models(architecture, **shared(architecture))
    _hold_logprobs(subject, numerics, folder, ranks)


@check(
    "distributed.greedy",
    "Greedy tokens do not depend on how many ranks share the model.",
    level=Level.EXTENDED,
    needs=MANY,
)
@RANKS
def test_greedy(serve: Serve, models: Models, architecture: str, ranks: int, same: Same) -> None:
    """Prompts of many lengths together, through core's engine."""
    _hold(serve, models, architecture, ranks, same, temperature=0.0)


@check(
    "distributed.seeded",
    "Seeded draws do not depend on how many ranks share the model.",
    level=Level.EXTENDED,
    needs=MANY,
)
@RANKS
def test_seeded(serve: Serve, models: Models, architecture: str, ranks: int, same: Same) -> None:
    """Noise is counted by seed, position and token id: of the whole vocabulary, not of a share."""
    _hold(serve, models, architecture, ranks, same, temperature=0.9)


def _hold(
    serve: Serve,
    models: Models,
    architecture: str,
    ranks: int,
    same: Same,
    temperature: float,
) -> None:
    folder = models(architecture, **shared(architecture))
    requests = [
        request(n, prompt(length, salt=n), temperature=temperature)
        for n, length in enumerate(LENGTHS)
    ]
    one, several = serve(folder), serve(folder, ranks=ranks)
    same(one, requests, one.answers(requests, TOGETHER), several.answers(requests, TOGETHER))


@check(
    "distributed.kv_heads",
    "KV heads of which there are fewer than ranks are held by several of them.",
    level=Level.EXTENDED,
    needs=MANY,
)
@pytest.mark.parametrize(
    ("heads", "ranks"),
    [
        (2, 4),
        pytest.param(1, 2, marks=thorough),
        pytest.param(1, 3, marks=thorough),
        pytest.param(4, 2, marks=thorough),
    ],
)
def test_kv_heads(
    subject: Subject, models: Models, numerics: Numerics, heads: int, ranks: int
) -> None:
    """A query head that reads a neighbour's keys shows, and so does one that reads a wrong copy."""
    folder = _first(subject, models, heads)
    _hold_logprobs(subject, numerics, folder, ranks)


@check(
    "distributed.vocabulary",
    "A token of any rank's share of the vocabulary can be chosen, and no other token than those.",
    level=Level.EXTENDED,
    needs=MANY,
)
@pytest.mark.parametrize(
    ("ranks", "tied"),
    [
        pytest.param(2, True, marks=thorough),
        pytest.param(2, False, marks=thorough),
        pytest.param(3, True, marks=thorough),
        (3, False),
    ],
)
def test_vocabulary(
    serve: Serve, subject: Subject, models: Models, ranks: int, tied: bool, same: Same
) -> None:
    """The first and the last token of each share are made the likeliest, one after another.

    Three ranks cannot share the vocabulary evenly: the last one's share is filled up, and what it
    is filled with must never be chosen. Where the head is tied, the embedding is cut as it is.
    """
    folder = _first(subject, models, tie_word_embeddings=tied)
    edges = shares_of(VOCAB, ranks)
    requests = [
        request(n, [*prompt(7), token], 2, temperature=0.0, logit_bias={token: FAVOUR})
        for n, token in enumerate(edges)
    ]
    several = serve(folder, ranks=ranks).answers(requests, TOGETHER)
    chosen = [several[n].tokens for n in range(len(edges))]
    assert chosen == [[token] * 2 for token in edges], (
        f"tokens {edges} were made the likeliest, and {chosen} were chosen"
    )
    one = serve(folder)
    same(one, requests, one.answers(requests, TOGETHER), several)


@check(
    "distributed.kinds",
    "A weight of any kind is cut into shares that compute what the whole computes.",
    level=Level.EXTENDED,
    needs=MANY,
)
@pytest.mark.parametrize(
    ("variant", "ranks"),
    [pytest.param(v, 2, marks=() if v in TWO_KINDS else thorough, id=str(v)) for v in ALL]
    + [pytest.param(v, 3, marks=thorough, id=f"{v}-3") for v in TWO_KINDS],
)
def test_kinds(
    subject: Subject, models: Models, numerics: Numerics, variant: Variant, ranks: int
) -> None:
    """Every matrix of the layers is of that kind. Cuts go through groups and blocks of columns."""
    _hold_logprobs(of_kind(subject, variant), numerics, _first(subject, models), ranks)


@check(
    "distributed.memory",
    "A rank holds its share of the weights, and not the whole.",
    level=Level.EXTENDED,
    needs=MANY,
)
def test_memory(subject: Subject, models: Models, numerics: Numerics) -> None:
    """`memory` tells of the fullest rank. A model is split because it does not fit on one."""
    folder = _first(subject, models)
    weights = []
    for ranks in (1, 2):
        options = config_for(subject.capabilities, ranks=ranks)
        running = Running.start(subject, folder, options)
        weights.append(running.executor.memory().weights)
        running.executor.shutdown()
    numerics.record("held_by_one_of_two", weights[1] / weights[0], HELD)


@check(
    "distributed.everything",
    "Small steps, few blocks, a prefix cache and a step ahead change no answer on several ranks.",
    level=Level.EXTENDED,
    needs=MANY,
)
@thorough
@pytest.mark.parametrize("ranks", [2, 3])
def test_everything(serve: Serve, subject: Subject, models: Models, ranks: int, same: Same) -> None:
    """Each rank has a cache of its own, and all must do the same with it, in the same order."""
    serving = serve(_first(subject, models, 2 if ranks == 2 else 3), ranks=ranks)
    same(serving, *variations.everything(serving))


@check(
    "distributed.bits",
    "On several ranks too, an answer's bits do not depend on its company.",
    level=Level.EXTENDED,
    needs=Both(MANY, Feature("batch_invariant")),
)
@pytest.mark.parametrize("variation", ["batch", pytest.param("chunk", marks=thorough)])
def test_bits(serve: Serve, subject: Subject, models: Models, variation: str) -> None:
    """Sums over ranks are in one order, whatever the number of rows."""
    serving = serve(_first(subject, models), ranks=2)
    wrong = differing_bits(*variations.VARIATIONS[variation](serving))
    assert not wrong, "; ".join(wrong[:3])


def _first(subject: Subject, models: Models, kv_heads: int = HEADS, **overrides: Any) -> Path:
    """A model that ranks can share, of the first architecture that is served."""
    name = served(subject.capabilities.architectures)[0]
    return models(name, **{**shared(name, kv_heads), **overrides})


def _hold_logprobs(subject: Subject, numerics: Numerics, folder: Path, ranks: int) -> None:
    """Against one rank, behind the same tokens."""
    difference = np.abs(forced(subject, folder, ranks) - forced(subject, folder, 1))
    bound = logprobs_bound(config_for(subject.capabilities).dtype)
    numerics.record("logprobs_max_abs", float(difference.max()), bound)
