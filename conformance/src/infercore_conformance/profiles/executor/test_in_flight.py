"""What is in flight: order, results that are late, and what a timeout means."""

import time

import numpy as np
import pytest

from infercore.errors import StepFailed
from infercore_conformance import AtLeast, Both, Feature, Level, check
from infercore_conformance.running import TIMEOUT, Running
from infercore_conformance.steps import Row, late_inputs, prompt

TWO = AtLeast("max_in_flight", 2)
LATE = Feature("late_inputs")
SHORT = 0.05  # seconds that a result is waited for which cannot come
STEPS = 5


def _rows() -> list[Row]:
    return [Row(0, prompt(20)), Row(1, prompt(33))]


def _waited(running: Running) -> list[list[int]]:
    """Tokens per step of `_rows`, each step's result awaited before the next is submitted."""
    rows = _rows()
    by_row = running.generate(running.stepper(), rows, STEPS)
    running.executor.reset()
    return [list(tokens) for tokens in zip(*by_row, strict=True)]


@check(
    "executor.in_flight.follow",
    "A step that follows the one in flight continues with its tokens.",
    level=Level.EXTENDED,
    needs=TWO,
)
def test_a_step_follows_the_one_in_flight(running: Running) -> None:
    """`token_source` names the row of the step before whose token is embedded.

    The host does not know the token yet: the executor passes it on, on the device.
    """
    expected = _waited(running)
    rows, stepper = _rows(), running.stepper()
    handles = [running.submit(stepper.step([(row, len(row.ids)) for row in rows]))]
    found = []
    for _ in range(STEPS - 1):
        handles.append(running.submit(stepper.step([(r, 1) for r in rows], follow={0: 0, 1: 1})))
        found.append(handles.pop(0).result(TIMEOUT).tokens[:, 0].tolist())
    found.append(handles[0].result(TIMEOUT).tokens[:, 0].tolist())
    assert found == expected, "one step ahead, other tokens come than when each is awaited"


@check(
    "executor.in_flight.follow_other_row",
    "A followed token is that of the row that `token_source` names, wherever it stands.",
    level=Level.EXTENDED,
    needs=TWO,
)
def test_rows_may_change_places(running: Running) -> None:
    """Rows come and go between steps, so a row's number changes while its slot stays."""
    expected = _waited(running)
    rows, stepper = _rows(), running.stepper()
    first = running.submit(stepper.step([(row, len(row.ids)) for row in rows]))
    turned = [(rows[1], 1), (rows[0], 1)]
    second = running.submit(stepper.step(turned, follow={0: 1, 1: 0}))
    assert first.result(TIMEOUT).tokens[:, 0].tolist() == expected[0]
    assert second.result(TIMEOUT).tokens[::-1, 0].tolist() == expected[1]


@check(
    "executor.in_flight.follow_in_part",
    "In one step, some rows follow and others bring tokens that the host knows.",
    level=Level.EXTENDED,
    needs=TWO,
)
def test_only_some_rows_follow(running: Running) -> None:
    """A prompt that is admitted while others decode: the usual step of a busy server."""
    expected = _waited(running)
    rows, stepper = _rows(), running.stepper()
    first = running.submit(stepper.step([(rows[0], len(rows[0].ids))]))
    both = [(rows[1], len(rows[1].ids)), (rows[0], 1)]
    second = running.submit(stepper.step(both, follow={1: 0}))
    assert first.result(TIMEOUT).tokens[0, 0] == expected[0][0]
    assert second.result(TIMEOUT).tokens[:, 0].tolist() == [expected[0][1], expected[1][0]]


@check(
    "executor.in_flight.results",
    "Each handle gives the result of its own step.",
    level=Level.EXTENDED,
    needs=TWO,
)
def test_each_handle_gives_its_own_result(running: Running) -> None:
    """Another number of rows in each makes a mix-up show in the shapes, ids in the content."""
    stepper = running.stepper()
    steps = [
        stepper.step([(Row(0, prompt(9)), 9)]),
        stepper.step([(Row(1, prompt(4)), 4), (Row(2, prompt(6)), 6)]),
    ]
    handles = [running.submit(step) for step in steps]
    for step, handle in zip(steps, handles, strict=True):
        result = handle.result(TIMEOUT)
        assert result.step_id == step.step_id, "the result of another step"
        assert len(result.tokens) == step.num_rows, "the rows of another step"


@check(
    "executor.in_flight.timeout",
    "A result that is not there yet is a TimeoutError, and is there later.",
    level=Level.EXTENDED,
    needs=LATE,
    timeout=10,
)
def test_a_timeout_loses_nothing(running: Running) -> None:
    """A late step that is not sampled cannot end, so its timeout is certain."""
    handle = running.submit(running.stepper().step([(Row(0, prompt(5)), 5)], late=True))
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        handle.result(SHORT)
    assert time.monotonic() - start < TIMEOUT / 2, "it waited far longer than it was told to"
    handle.sample(late_inputs(1))
    assert handle.result(TIMEOUT).n_tokens.tolist() == [1]


@check(
    "executor.in_flight.submit_returns",
    "Submit does not wait for the step before it.",
    level=Level.EXTENDED,
    needs=Both(TWO, LATE),
    timeout=10,
)
def test_submit_does_not_wait(running: Running) -> None:
    """Behind a step that waits for its late inputs, a submit that waits would wait for ever."""
    stepper = running.stepper()
    first = running.submit(stepper.step([(Row(0, prompt(5)), 5)], late=True))
    second = running.submit(stepper.step([(Row(1, prompt(6)), 6)]))
    with pytest.raises(TimeoutError):
        second.result(SHORT)
    first.sample(late_inputs(1))
    assert first.result(TIMEOUT).n_tokens.tolist() == [1]
    assert second.result(TIMEOUT).n_tokens.tolist() == [1]


@check(
    "executor.in_flight.refused",
    "A step that is refused leaves the one in flight alone.",
    level=Level.EXTENDED,
    needs=Both(TWO, LATE),
    timeout=10,
)
def test_a_refused_step_harms_none_in_flight(running: Running) -> None:
    """It never ran, so what came before it counts, and what comes behind it follows that."""
    stepper, row = running.stepper(), Row(0, prompt(5))
    first = running.submit(stepper.step([(row, 5)], late=True))
    extras = {"no_such_extra": np.zeros(1, np.float32)}
    refused = stepper.step([(Row(1, prompt(4)), 4)], extras=extras)
    with pytest.raises(StepFailed, match="no_such_extra"):
        running.submit(refused)
    first.sample(late_inputs(1))
    token = int(first.result(TIMEOUT).tokens[0, 0])
    row.ids.append(token)
    assert running.run(stepper.step([(row, 1)])).n_tokens.tolist() == [1]
