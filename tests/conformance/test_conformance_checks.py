"""Declarations: what a check may be, what decides that it runs, and what lists and explains it."""

import subprocess
import sys
from collections import Counter

import pytest

from infercore.capabilities import FULL, UNKNOWN, Capabilities, Capability, Support
from infercore.errors import ConfigError
from infercore_conformance import AtLeast, Both, Check, Feature, Level, Listed, Need
from infercore_conformance.catalogue import entries, profile_names, require_profiles
from infercore_conformance.fixtures import Numerics
from infercore_conformance.listing import explanation, listing
from infercore_conformance.outcomes import Figure

YES = Feature("late_inputs")
NO = Capability(Support.UNSUPPORTED, "it cannot")
LATER = Feature("graph_capture")
CAN = Capabilities(
    dtypes=("float32",),
    block_sizes=(16, 128),
    max_in_flight=1,
    late_inputs=FULL,
    block_copy=NO,
    graph_capture=Capability(Support.NOT_IMPLEMENTED, "not yet"),
    extras={"acme.pixels": FULL},
)


@pytest.mark.parametrize(
    ("need", "support", "name"),
    [
        (Feature("late_inputs"), Support.FULL, "late_inputs"),
        (Feature("block_copy"), Support.UNSUPPORTED, "block_copy"),
        (Feature("prompt_logprobs"), Support.UNKNOWN, "prompt_logprobs"),
        (Feature("acme.pixels"), Support.FULL, "acme.pixels"),
        (Feature("acme.sound"), Support.UNKNOWN, "acme.sound"),
        (AtLeast("max_in_flight", 1), Support.FULL, "max_in_flight >= 1"),
        (AtLeast("max_in_flight", 2), Support.UNSUPPORTED, "max_in_flight >= 2"),
        (Listed("block_sizes", 128), Support.FULL, "128 in block_sizes"),
        (Listed("dtypes", "bfloat16"), Support.UNSUPPORTED, "bfloat16 in dtypes"),
        (Listed("architectures", "AnyModel"), Support.FULL, "AnyModel in architectures"),
        (Both(YES, LATER), Support.NOT_IMPLEMENTED, "late_inputs and graph_capture"),
        (Both(Feature("block_copy"), YES), Support.UNSUPPORTED, "block_copy and late_inputs"),
        (Both(Feature("prompt_logprobs"), YES), Support.UNKNOWN, "prompt_logprobs and late_inputs"),
    ],
)  # fmt: skip
def test_capabilities_answer_a_need(need: Need, support: Support, name: str) -> None:
    assert need.answer(CAN).support is support
    assert str(need) == name


def test_an_answer_says_why() -> None:
    assert AtLeast("max_in_flight", 2).answer(CAN).detail == "max_in_flight is 1"
    assert Listed("collectives", "threads").answer(CAN).detail == "collectives is empty"
    assert Feature("prompt_logprobs").answer(CAN) is UNKNOWN


@pytest.mark.parametrize(
    ("name", "level", "need", "message"),
    [
        ("toy", Level.CORE, None, "profile.topic"),
        ("Toy.One", Level.CORE, None, "profile.topic"),
        ("toy.one", Level.CORE, Feature("late_inputs"), "Core check needs nothing"),
        ("toy.one", Level.EXTENDED, None, "names the feature"),
    ],
)
def test_a_declaration_that_cannot_be(
    name: str, level: Level, need: Need | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Check(name, "It is so.", level, need)


def test_every_check_is_declared_once_and_in_its_profile() -> None:
    found = entries()
    assert len(found) >= 60
    [(_, most)] = Counter(entry.check.id for entry in found).most_common(1)
    assert most == 1
    for entry in found:
        assert f".profiles.{entry.check.profile}." in entry.place
        assert entry.check.summary.endswith(".")


def test_profiles_say_what_they_are_about() -> None:
    assert profile_names()["executor"].startswith("Each call of the Executor contract")
    assert all(about.endswith(".") for about in profile_names().values())
    with pytest.raises(ConfigError, match="no profile 'exekutor'; there are: .*executor"):
        require_profiles(["exekutor"])


def test_the_list_names_every_check() -> None:
    text = listing()
    assert all(f"  {entry.check.id} (" in text for entry in entries())
    assert "executor.late.mask (extended, needs late_inputs)" in listing(["executor"])


def test_an_explanation_says_why_and_how_to_run_it() -> None:
    text = explanation("executor.late.mask")
    for words in (
        "A masked row yields a token that its mask allows",
        "needs      late_inputs",
        "run alone  infercore conformance run --backend NAME --check executor.late.mask",
        "Masks come for some rows only",
    ):
        assert words in text
    with pytest.raises(ConfigError, match=r"did you mean executor\.late\.mask"):
        explanation("executor.late.maks")


def test_numerics_are_kept_and_held_against_their_bound() -> None:
    kept: list[Figure] = []
    numerics = Numerics(kept)
    numerics.record("seen", 9.0)
    numerics.record("inside", 1.0, 1.0)
    with pytest.raises(AssertionError, match=r"outside is 1\.5, and at most 1 is allowed"):
        numerics.record("outside", 1.5, 1.0)
    with pytest.raises(AssertionError, match="lost is nan"):
        numerics.record("lost", float("nan"), 1.0)
    assert [figure.name for figure in kept] == ["seen", "inside", "outside", "lost"]


def test_importing_the_suite_brings_in_no_torch() -> None:
    code = (
        "import sys; from infercore_conformance import catalogue, runner, session, fixtures;"
        "catalogue.entries(); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
