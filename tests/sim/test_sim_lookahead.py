"""A row that yields several tokens in a step says what it says a token at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infercore import LLM, SamplingParams
from infercore.hub import DEMO
from infercore.sampling import RowStatus
from infercore.step import Step
from infercore_sim.options import VARIABLE
from model_runs import prompt
from sim_device import DYNAMIC, Device, device, run
from stepper import Sequenced

WORDS = f"{DYNAMIC},lookahead-4"
SAMPLING = SamplingParams(temperature=0.8, repetition_penalty=1.3)


def one_by_one(sim: Device, length: int, count: int) -> tuple[list[int], list[float]]:
    """The next `count` tokens of a prompt in slot 1, and their log-probabilities."""
    stepper, row, logprobs = sim.stepper(), Sequenced(1, prompt(length)), []
    for _ in range(count):
        ahead = len(row.ids) - row.done
        result = run(sim.executor, stepper.step([(row, ahead)], sampling=SAMPLING, logprobs=2))
        row.ids.append(int(result.tokens[0, 0]))
        logprobs += result.top_logprobs[0, 0].tolist()
    return row.ids[length:], logprobs


def test_four_tokens_at_once_are_those_of_four_steps(folder: Path) -> None:
    with device(folder, WORDS) as sim:
        expected, logprobs = one_by_one(sim, 14, 4)
        stepper = sim.stepper(1)
        rows = [(Sequenced(0, prompt(9)), 5), (Sequenced(1, [*prompt(14), 0, 0, 0]), 17)]
        step = stepper.step(rows, sampling=SAMPLING, logprobs=2)  # with blocks for what follows
        step = _without_last(step, 3)
        step.max_tokens[1] = 4
        result = run(sim.executor, step)
        assert result.n_tokens.tolist() == [0, 4]
        assert result.tokens[1].tolist() == expected
        np.testing.assert_allclose(result.top_logprobs[1].ravel(), logprobs, atol=1e-5)
        assert result.logprobs.shape == (2, 4)


def test_a_stop_id_ends_the_row_and_one_token_may_be_followed(folder: Path) -> None:
    with device(folder, WORDS) as sim:
        expected, _ = one_by_one(sim, 14, 4)
        stepper = sim.stepper(1)
        many, single = Sequenced(1, [*prompt(14), 0, 0, 0]), Sequenced(2, prompt(6))
        step = _without_last(stepper.step([(single, 6), (many, 17)], sampling=SAMPLING), 3)
        ends = np.array([expected[1]], np.int32)
        step.slot_init = (step.slot_init[0], replace(step.slot_init[1], stop_ids=ends))
        step.max_tokens[1] = 4
        handle = sim.executor.submit(step)
        after = sim.executor.submit(stepper.step([(single, 1)], sources={0: 0}))
        result = handle.result(30)
        assert result.n_tokens.tolist() == [1, 2]
        assert result.tokens[1, :2].tolist() == expected[:2]
        follower = after.result(30)
        again = sim.stepper(2)
        row = Sequenced(2, [*prompt(6), int(result.tokens[0, 0])])
        alone = again.step([(row, 7)], sampling=SAMPLING)
        assert follower.status.tolist() == [RowStatus.OK]
        assert run(sim.executor, alone).tokens.tolist() == follower.tokens.tolist()


def _without_last(step: Step, count: int) -> Step:
    """The step without the last tokens of its last row; their blocks stay."""
    tokens = step.num_tokens - count
    step.query_start[-1] -= count
    step.context_len[-1] -= count
    step.sample_positions[-1] -= count
    step.slot_init = (
        *step.slot_init[:-1],
        replace(step.slot_init[-1], prompt_ids=step.slot_init[-1].prompt_ids[:-count]),
    )
    return replace(
        step,
        token_ids=step.token_ids[:tokens],
        token_source=step.token_source[:tokens],
        positions=step.positions[:tokens],
        slot_mapping=step.slot_mapping[:, :tokens].copy(),
        prompt_targets=step.prompt_targets[:tokens],
    )


def test_an_engine_says_the_same_in_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, steps = [], []
    params = [
        SamplingParams(temperature=0.0, max_tokens=14),
        SamplingParams(seed=5, max_tokens=9, repetition_penalty=1.2, logprobs=1, ignore_eos=True),
        SamplingParams(seed=6, max_tokens=1),
    ]
    for words in ("in-flight-1", "lookahead-4"):
        monkeypatch.setenv(VARIABLE, words)
        with LLM(DEMO, backend="sim", dtype="float32", max_num_seqs=4, max_model_len=64) as llm:
            done = llm.generate(["Hello!", "Who are you?", "Why?"], params, progress=False)
            texts.append([(each.text, each.finish_reason, each.token_ids) for each in done])
            steps.append(llm.stats.steps)
            assert llm.stats.failed_steps == 0
    assert texts[0] == texts[1]
    assert steps[1] * 2 < steps[0]
