"""Counts of ranks that cannot be: refused at load, before anything is served wrongly."""

from pathlib import Path
from typing import Any

import pytest

from infercore.errors import UnsupportedModel
from infercore_conformance import Level, check
from infercore_conformance.fixtures import Models
from infercore_conformance.models import served
from infercore_conformance.ranks import FEATURES, HEADS, MANY, shared
from infercore_conformance.running import config_for, open_model, quiet
from infercore_conformance.subject import Subject

BEYOND = 2  # ranks, of an executor that declares no collective
UNEVEN: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("heads", 5, {}),
    ("kv_heads", 2, {"num_key_value_heads": 3}),
    ("features", 4, {"intermediate_size": FEATURES - 2, "n_inner": FEATURES - 2}),
)


@check(
    "distributed.refused.undeclared",
    "An executor that declares no collective refuses a model for two ranks.",
)
def test_undeclared(subject: Subject, models: Models) -> None:
    """`--num-shard 2` is an order. Whoever serves on one rank all the same ignores it.

    One that declares a collective takes the model, so that this asks every backend something.
    """
    name = served(subject.capabilities.architectures)[0]
    folder = models(name, **shared(name))
    if subject.capabilities.collectives:
        _load(subject, folder, BEYOND)
        return
    message = _refusal(subject, folder, BEYOND)
    assert str(BEYOND) in message, f"the refusal does not say what was asked for: {message}"


@check(
    "distributed.refused.uneven",
    "Counts of ranks that do not divide the model are refused at load, with the reason.",
    level=Level.EXTENDED,
    needs=MANY,
)
@pytest.mark.parametrize(("what", "ranks", "sizes"), UNEVEN, ids=[case[0] for case in UNEVEN])
def test_uneven(
    subject: Subject, models: Models, what: str, ranks: int, sizes: dict[str, Any]
) -> None:
    """Heads, KV heads and features of the MLPs. A rank with fewer of them computes another model.

    The message says how many ranks were asked for and how many would do; afterwards the same
    backend takes a count that is right.
    """
    name = served(subject.capabilities.architectures)[0]
    known = shared(name)
    sizes = {key: value for key, value in sizes.items() if key in known}
    if what == "kv_heads" and not sizes:
        return  # the family has as many KV heads as heads, which "heads" is about
    folder = models(name, **{**known, **sizes})
    message = _refusal(subject, folder, ranks)
    assert str(ranks) in message, f"the refusal does not say what was asked for: {message}"
    assert any(f" {count}" in message for count in (1, 2, 3, HEADS) if count != ranks), (
        f"the refusal does not say what would do: {message}"
    )
    _load(subject, folder, 1)


def _refusal(subject: Subject, folder: Path, ranks: int) -> str:
    with pytest.raises(UnsupportedModel) as refused:
        _load(subject, folder, ranks)
    return str(refused.value)


def _load(subject: Subject, folder: Path, ranks: int) -> None:
    executor = subject.executor()
    try:
        spec, weights = open_model(folder)
        executor.load(spec, weights, config_for(subject.capabilities, ranks=ranks), quiet)
    finally:
        executor.shutdown()
