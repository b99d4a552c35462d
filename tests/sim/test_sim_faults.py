"""Faults on demand, as an engine meets them."""

from pathlib import Path

import numpy as np
import pytest

from infercore import LLM, SamplingParams
from infercore.errors import ExecutorLost, GenerationFailed, StepFailed
from infercore.hub import DEMO
from infercore.sampling import RowStatus
from infercore.step import LateInputs, Step
from infercore_sim.faults import NO_TOKEN_ID
from infercore_sim.options import VARIABLE
from model_runs import prompt
from sim_device import DYNAMIC, Device, device, run
from stepper import Sequenced


def step_of(sim: Device, *, late: bool = False) -> Step:
    return sim.stepper().step([(Sequenced(0, prompt(4)), 4)], late=late)


def test_out_of_memory_fails_its_step_only(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},oom@1") as sim:
        step = step_of(sim)
        run(sim.executor, step)
        with pytest.raises(StepFailed, match="out of memory"):
            run(sim.executor, step)
        run(sim.executor, step)


def test_nan_logits_are_reported_by_row(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},nan@0") as sim:
        step = step_of(sim)
        assert run(sim.executor, step).status.tolist() == [RowStatus.NOT_FINITE]
        assert run(sim.executor, step).status.tolist() == [RowStatus.OK]


def test_a_wrong_result_comes_as_if_nothing_was(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},dtype@1,garbage@2,step-id@3") as sim:
        step = step_of(sim)
        right, dtype, garbage, step_id = (run(sim.executor, step) for _ in range(4))
        assert dtype.tokens.dtype == np.float32
        assert dtype.logprobs.dtype == np.float64
        assert garbage.tokens.tolist() == [[NO_TOKEN_ID]]
        assert step_id.step_id == right.step_id + 1
        assert step_id.tokens.tolist() == right.tokens.tolist()


def test_a_hang_ends_with_the_device_only(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},hang@0") as sim:
        hung, behind = sim.executor.submit(step_of(sim)), None
        behind = sim.executor.submit(sim.stepper(1).step([(Sequenced(1, prompt(4)), 4)]))
        with pytest.raises(TimeoutError):
            hung.result(0.1)
        for call in (sim.executor.health, sim.executor.reset):
            with pytest.raises(ExecutorLost, match="it hung in step 1, on demand; restart"):
                call()
        with pytest.raises(TimeoutError):
            behind.result(0.1)
        sim.executor.shutdown()
        for handle in (hung, behind):
            with pytest.raises(ExecutorLost, match="hung in step 1"):
                handle.result(30)


def test_a_lost_rank_is_lost_for_good(folder: Path) -> None:
    with device(folder, f"{DYNAMIC},lost@1") as sim:
        step = step_of(sim)
        run(sim.executor, step)
        sim.executor.health()
        for _ in range(2):
            with pytest.raises(ExecutorLost, match="it lost a rank in step 1"):
                run(sim.executor, step)
        with pytest.raises(ExecutorLost, match="lost a rank"):
            sim.executor.health()


def test_a_shutdown_waits_for_no_late_inputs(folder: Path) -> None:
    with device(folder) as sim:
        handle = sim.executor.submit(step_of(sim, late=True))
        sim.executor.shutdown()
        sim.executor.shutdown()
        handle.sample(
            LateInputs(np.zeros(0, np.int32), np.zeros((0, 5), np.uint32), np.zeros(1, np.bool_))
        )
        assert handle.result(30).status.tolist() == [RowStatus.DROPPED]


GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
QUESTIONS = ["What is the capital of France?", "Hello!", "Who are you?"]


def answers(words: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """The texts, and how many steps failed on the way."""
    monkeypatch.setenv(VARIABLE, words)
    with LLM(DEMO, backend="sim", dtype="float32", max_num_seqs=4, max_model_len=64) as llm:
        done = llm.generate(QUESTIONS, GREEDY, progress=False)
        return [each.text for each in done], llm.stats.failed_steps


def test_an_engine_on_the_device_says_what_it_says_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LLM(DEMO, dtype="float32", threads=1, max_num_seqs=4, max_model_len=128) as llm:
        expected = [each.text for each in llm.generate(QUESTIONS, GREEDY, progress=False)]
    assert answers("block-128,in-flight-1,no-late", monkeypatch) == (expected, 0)
    # step 3 is dropped with step 2, and step 4 is the first one that runs suspects alone
    assert answers("oom@2,oom@4", monkeypatch) == (expected, 2)


def test_nan_ends_requests_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GenerationFailed, match="float32 first, may help"):
        answers("nan@3", monkeypatch)


def test_a_lost_device_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutorLost, match="lost a rank in step"):
        answers("lost@3", monkeypatch)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("step-id", r"in step 4 the executor answered step \d+; restart"),
        ("garbage", "in step 4 the executor gave tokens that are none of its 4096"),
        ("dtype", "in step 4 the executor gave tokens"),
    ],
)
def test_a_result_that_makes_no_sense_ends_the_engine(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExecutorLost, match=said):
        answers(f"{fault}@3", monkeypatch)
