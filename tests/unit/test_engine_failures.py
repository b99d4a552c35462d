"""Failed steps: who is to blame is found by halving, and everyone else goes on."""

from dataclasses import replace
from typing import Any

import pytest

from engine_traffic import GREEDY, Driver, make_engine, prompt
from faults import Fault
from infercore.engine.request import FinishReason, Request
from infercore.errors import GenerationFailed
from numpy_executor import NumpyExecutor
from toy_model import ToyModel, expected

BAD = 3
REQUESTS = [Request(i + 1, prompt(4 + i, i), replace(GREEDY, seed=i + 1)) for i in range(8)]


def play(*faults: Fault, **machine: Any) -> tuple[Driver, NumpyExecutor]:
    """All requests at once on a machine with faults, to the end."""
    executor = NumpyExecutor(faults=faults, **machine)
    driver = Driver(make_engine(executor, max_batch_tokens=64))
    driver.add(REQUESTS)
    driver.run()
    return driver, executor


def assert_fails_alone(driver: Driver, *failed: int) -> None:
    for request in REQUESTS:
        got = driver.received[request.request_id]
        if request.request_id in failed:
            assert got.last is not None
            assert isinstance(got.last.error, GenerationFailed)
            assert f"request {request.request_id}: " in str(got.last.error)
        else:
            assert got.reason is FinishReason.LENGTH
            assert got.tokens == expected(request, ToyModel(), 64).tokens


def rows(executor: NumpyExecutor) -> list[int]:
    return [len(step) for step in executor.log]


def test_a_failed_step_is_halved_until_one_request_fails_alone() -> None:
    driver, executor = play(Fault(seed=BAD), max_in_flight=1)
    assert_fails_alone(driver, BAD)
    # all 8 fail; then 4, and its halves: (1, 2) pass, (3, 4) fail, 3 alone fails, 4 passes; then 4
    assert rows(executor)[:7] == [8, 4, 2, 2, 1, 1, 4]
    assert driver.engine.stats().failed_steps == 4


@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("position", [0, 8])
@pytest.mark.parametrize("kv_intact", [True, False])
@pytest.mark.parametrize("at_submit", [True, False])
def test_only_the_request_at_fault_ends(
    ahead: int, position: int, kv_intact: bool, at_submit: bool
) -> None:
    fault = Fault(seed=BAD, position=position, kv_intact=kv_intact, at_submit=at_submit)
    driver, _ = play(fault, max_in_flight=ahead)
    assert_fails_alone(driver, BAD)
    want = expected(REQUESTS[BAD - 1], ToyModel(), 64).tokens
    got = driver.received[BAD].tokens
    assert got == want[: len(got)]
    assert len(got) == max(0, position + 1 - len(REQUESTS[BAD - 1].prompt_ids))


def test_a_named_row_is_tried_alone_at_once() -> None:
    driver, executor = play(Fault(seed=BAD, named=True), max_in_flight=1)
    assert_fails_alone(driver, BAD)
    assert rows(executor)[:3] == [8, 1, 7]


def test_a_named_row_that_is_not_worth_a_retry_ends_at_once() -> None:
    driver, executor = play(Fault(seed=BAD, named=True, retryable=False), max_in_flight=1)
    assert_fails_alone(driver, BAD)
    assert rows(executor)[:2] == [8, 7]
    assert driver.engine.stats().failed_steps == 1


def test_two_requests_at_fault_are_both_found() -> None:
    driver, _ = play(Fault(seed=2), Fault(seed=7, position=12))
    assert_fails_alone(driver, 2, 7)


@pytest.mark.parametrize("at_submit", [True, False])
def test_a_failure_that_passes_harms_nobody(at_submit: bool) -> None:
    driver, _ = play(Fault(step=4, at_submit=at_submit))
    assert_fails_alone(driver)
    assert driver.engine.stats().failed_steps == 1


def test_a_request_alone_gets_one_more_try() -> None:
    for faults, reason in (
        ([Fault(step=1)], FinishReason.LENGTH),
        ([Fault(step=1, retryable=False)], FinishReason.ERROR),
        ([Fault(seed=1, position=4)], FinishReason.ERROR),
    ):
        driver = Driver(make_engine(NumpyExecutor(faults=faults)))
        driver.engine.add(REQUESTS[0])
        assert driver.run()[1].reason is reason


def test_dropped_steps_count_for_nothing() -> None:
    """The step behind a failed one yields nothing, and its tokens come once, later."""
    driver, _ = play(Fault(step=3))
    stats = driver.engine.stats()
    assert stats.generated_tokens == sum(len(got.tokens) for got in driver.received.values()) == 64
    assert stats.dropped_tokens == 0


def test_scores_that_are_not_finite_end_their_request_only() -> None:
    driver, _ = play(Fault(seed=BAD, position=8, nan=True))
    assert_fails_alone(driver, BAD)
    last = driver.received[BAD].last
    assert "not finite (NaN or infinity) at position 9" in str(last and last.error)
    assert driver.engine.stats().failed_steps == 0


def test_losing_the_kv_cache_makes_everyone_resume_by_recomputing() -> None:
    driver, executor = play(Fault(step=3, kv_intact=False), max_in_flight=1)
    assert_fails_alone(driver)
    assert driver.engine.stats().preemptions == 8
    assert {start for _, start, _ in executor.log[4]} == {0}


def test_an_abort_survives_the_failure_of_its_step() -> None:
    driver = Driver(make_engine(NumpyExecutor(faults=[Fault(step=0)]), max_batch_tokens=64))
    driver.add(REQUESTS)
    driver.step()  # in flight now
    driver.engine.abort(BAD)
    received = driver.run()
    assert received.pop(BAD).reason is FinishReason.ABORT
    assert {got.reason for got in received.values()} == {FinishReason.LENGTH}


def test_aborting_a_suspect_ends_the_search() -> None:
    executor = NumpyExecutor(faults=[Fault(seed=BAD)], max_in_flight=1)
    driver = Driver(make_engine(executor, max_batch_tokens=64))
    driver.add(REQUESTS)
    driver.step()
    driver.engine.abort(BAD)
    received = driver.run()
    assert received.pop(BAD).reason is FinishReason.ABORT
    assert {got.reason for got in received.values()} == {FinishReason.LENGTH}
    assert driver.engine.stats().failed_steps == 1


def test_nobody_reads_what_led_to_scores_that_are_not_finite() -> None:
    """Its first chunks had no status, so their blocks were cached before the NaN showed."""
    executor = NumpyExecutor(faults=[Fault(seed=BAD, position=18, nan=True)])
    driver = Driver(make_engine(executor, max_batch_tokens=8))
    ids = prompt(19)
    requests = [Request(seed, ids, replace(GREEDY, seed=seed)) for seed in (1, BAD, 4)]
    cached = []
    for request in requests:
        driver.add([request])
        cached.append(driver.run()[request.request_id].cached_tokens)
    assert driver.received[BAD].reason is FinishReason.ERROR
    assert cached == [0, 0, 0], "the third finds nothing, though the first's blocks were good"
    assert driver.received[4].tokens == driver.received[1].tokens
