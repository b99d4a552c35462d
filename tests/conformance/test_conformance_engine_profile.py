"""The engine profile: what its comparison lets pass, and that backends pass it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore_conformance.engine_answers import Answer, compare, differing_bits
from infercore_conformance.engine_traffic import request
from infercore_conformance.models import VOCAB
from infercore_conformance.steps import prompt

INFERCORE = Path(sys.executable).with_name("infercore")

# --- what the comparison lets pass ---------------------------------------------------------------


def answer(tokens: list[int], rows: list[dict[int, float]]) -> Answer:
    """rows: {token: log-probability}; of all others it is −20, less and less."""
    made = Answer(list(tokens), reason=FinishReason.LENGTH)
    for token, row in zip(tokens, rows, strict=True):
        values = {**{n: -20 - n / VOCAB for n in range(VOCAB)}, **row}
        ids = sorted(values, key=lambda n: -values[n])
        tops = tuple(values[n] for n in ids)
        made.logprobs.append(TokenLogprobs(values[token], tuple(ids), tops))
    return made


def judged(one: Answer, other: Answer, **sampling: Any) -> tuple[int, int]:
    """(forks, wrong) of a request that got `one`, and then `other`."""
    asked = request(0, prompt(5), len(one.tokens), **sampling)
    result = compare([asked], {0: one}, {0: other}, 1e-3)
    return result.forks, len(result.wrong)


CLOSE, CLEAR = {4: -0.5, 9: -0.501}, {4: -0.5, 9: -0.6}


def test_texts_may_part_where_scores_are_as_good_as_equal() -> None:
    one, other = answer([4, 4], [CLEAR, CLOSE]), answer([4, 9], [CLEAR, CLOSE])
    assert judged(one, one, temperature=0.0) == (0, 0)
    assert judged(one, other, temperature=0.0) == (1, 0)


def test_texts_may_not_part_elsewhere() -> None:
    one, other = answer([4, 4], [CLEAR, CLEAR]), answer([4, 9], [CLEAR, CLEAR])
    assert judged(one, other, temperature=0.0) == (0, 1)
    assert judged(other, one, temperature=0.0) == (0, 1), "the expected choice was the wrong one"


def test_what_lies_behind_a_parting_is_not_compared() -> None:
    one = answer([4, 4], [CLOSE, {4: -1.0}])
    other = answer([9, 4], [CLOSE, {4: -9.0}])
    asked = request(0, prompt(5), 2, temperature=0.0)
    result = compare([asked], {0: one}, {0: other}, 1e-3)
    assert (result.forks, result.wrong) == (1, [])
    assert result.largest == 0.0


def test_a_text_that_ends_early_is_wrong() -> None:
    one, other = answer([4, 4], [CLEAR, CLEAR]), answer([4], [CLEAR])
    assert judged(one, other, temperature=0.0) == (0, 1)
    ended = replace(one, reason=FinishReason.STOP)
    assert judged(one, ended, temperature=0.0) == (0, 1)


def test_penalties_and_noise_are_part_of_a_score() -> None:
    """4 is likelier; with what it was penalized by, both are open, and 9 may be chosen."""
    first, second = {4: -0.5}, {4: -0.5, 9: -1.5}
    one, other = answer([4, 4], [first, second]), answer([4, 9], [first, second])
    assert judged(one, other, temperature=0.0, frequency_penalty=1.0) == (1, 0)
    assert judged(one, other, temperature=0.0) == (0, 1)
    assert judged(one, other, temperature=1.0, seed=1) == (0, 1)


def test_bits_are_bits() -> None:
    one, other = answer([4], [CLEAR]), answer([4], [{4: -0.5, 9: -0.6000001}])
    asked = [request(0, prompt(5), 1)]
    assert differing_bits(asked, {0: one}, {0: one}) == []
    assert len(differing_bits(asked, {0: one}, {0: other})) == 1
    assert len(differing_bits(asked, {0: one}, {0: answer([9], [CLEAR])})) == 1


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["cpu", "sim", "numpy"])
def test_backends_pass_the_profile(backend: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [str(INFERCORE), "conformance", "run", "--backend", backend, "--profile", "engine"]
    ended = subprocess.run(
        [*command, "--report", str(report)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    profile = json.loads(report.read_text())["profiles"]["engine"]
    assert profile["core"].keys() == {"passed"}
    assert profile["extended"].keys() <= {"passed", "not run"}
