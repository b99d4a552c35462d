"""The words of INFERCORE_SIM, and what they make of the device's capabilities."""

from pathlib import Path

import pytest

from infercore.capabilities import Capabilities, Dimension
from infercore.errors import ConfigError
from infercore.plugins import PluginManager
from infercore_sim.backend import SimBackend
from infercore_sim.options import FEATURES, NUMBERS, VARIABLE, Fault, SimOptions


def can(words: str) -> Capabilities:
    return SimBackend(SimOptions.parse(words)).capabilities()


def test_without_words_it_is_the_strictest_device() -> None:
    plain = can("")
    assert {static.dimension for static in plain.static_dimensions} == set(Dimension)
    assert all(static.multiple_of > 1 for static in plain.static_dimensions)
    assert all(static.compile_seconds == 1.0 for static in plain.static_dimensions)
    assert plain.max_in_flight == 2
    assert plain.tokens_per_step == 1
    assert plain.dtypes[0] == "bfloat16"
    assert plain.graph_capture
    assert plain.late_inputs
    assert plain.prompt_logprobs
    assert can("  ") == plain


def test_words_take_away() -> None:
    less = can("no-bf16, no-graph,no-late,no-prompt-logprobs,block-128,in-flight-1")
    assert less.dtypes == ("float32", "float16")
    assert less.kv_dtypes == ("auto", "float32", "float16")
    assert less.block_sizes == (128,)
    assert less.max_in_flight == 1
    assert can("lookahead-4").tokens_per_step == 4
    assert not less.late_inputs
    assert less.graph_capture.detail == f"{VARIABLE} says no-graph"
    assert not less.prompt_logprobs


def test_dimensions_are_freed_one_by_one() -> None:
    left = can("dynamic-rows,compile-30").static_dimensions
    assert [static.dimension for static in left] == [Dimension.TOKENS, Dimension.BLOCKS]
    assert {static.compile_seconds for static in left} == {30.0}
    assert can("dynamic-tokens,dynamic-rows,dynamic-blocks").static_dimensions == ()


def test_faults_are_planted_by_step() -> None:
    assert SimOptions.parse("oom@5,step-id@0").faults == {5: Fault.OOM, 0: Fault.STEP_ID}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("no-bf17", "'no-bf17' is none of its words; they are no-bf16, no-fp16, no-graph"),
        ("oom", "'oom' is none of its words"),
        ("oom@-1", "'oom@-1' is none of its words"),
        ("block-16,", "'' is none of its words"),
        ("No-bf16", "'No-bf16' is none of its words"),
        ("block-48", "block cannot be 48"),
        ("in-flight-3", "in-flight cannot be 3"),
        ("memory-0", "memory cannot be 0"),
        ("block-16,block-32", "block is given twice"),
        ("oom@5,nan@5", "step 5 has two faults"),
        ("no-late,no-late", "'no-late' says again what was said"),
    ],
)
def test_what_is_no_word_is_refused_by_name(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{VARIABLE}: {message}"):
        SimOptions.parse(words)


def test_every_word_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "backends/sim/README.md").read_text()
    words = [f"no-{name}" for name in FEATURES] + [f"{name}-N" for name in NUMBERS]
    words += [f"dynamic-{dimension.value}" for dimension in Dimension]
    words += [fault.value for fault in Fault]
    assert [word for word in words if f"`{word}`" not in readme] == []


def test_the_plugin_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = PluginManager().backend("sim")
    assert backend is SimBackend
    assert backend.probe().available
    monkeypatch.setenv(VARIABLE, "block-32")
    assert SimBackend().capabilities().block_sizes == (32,)
    monkeypatch.setenv(VARIABLE, "block-33")
    with pytest.raises(ConfigError, match="33"):
        SimBackend()
