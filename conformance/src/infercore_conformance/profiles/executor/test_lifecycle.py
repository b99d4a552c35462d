"""Warm-up, health, reset and shutdown: the calls around the steps."""

import time

from infercore.capabilities import Capabilities, Dimension
from infercore.executor import Bucket
from infercore.sampling import SamplingParams
from infercore_conformance import Feature, Level, check
from infercore_conformance.fixtures import Models, Numerics, Start
from infercore_conformance.running import TIMEOUT, Running
from infercore_conformance.steps import Row, prompt
from infercore_conformance.subject import Subject

PROMPTLY = 10.0  # seconds: for what does no work, on a machine that is busy


@check("executor.warm_up.deadline", "Warm-up stops at its deadline.")
def test_warm_up_stops_at_its_deadline(
    running: Running, capabilities: Capabilities, numerics: Numerics
) -> None:
    """One that is past lets nothing begin; core compiles later what did not fit."""
    buckets = _buckets(capabilities)
    start = time.monotonic()
    running.executor.warm_up(buckets, start - 1, lambda *_: None)
    numerics.record("seconds_past_the_deadline", time.monotonic() - start, PROMPTLY)


@check("executor.warm_up.progress", "Warm-up tells how many of its buckets are done.")
def test_warm_up_tells_how_far_it_is(running: Running, capabilities: Capabilities) -> None:
    buckets = _buckets(capabilities)
    calls: list[tuple[str, int, int]] = []
    running.executor.warm_up(buckets, time.monotonic() + TIMEOUT, lambda *call: calls.append(call))
    assert calls, "progress was never called"
    assert all(0 <= done <= total for _, done, total in calls), f"{calls}"


@check("executor.health.answers", "A device that is well says so.")
def test_health_answers(running: Running) -> None:
    """Before, between and after steps; it disturbs none."""
    running.executor.health()
    [expected] = running.generate(running.stepper(), [Row(0, prompt(9))], 3)
    running.executor.reset()
    stepper, row, found = running.stepper(), Row(0, prompt(9)), []
    for _ in range(3):
        found += running.generate(stepper, [row], 1)[0]
        running.executor.health()
    assert found == expected


@check("executor.reset.forgets", "Reset drops slots and cache; the model stays loaded.")
def test_reset_forgets(running: Running) -> None:
    """After a failure the engine starts every sequence anew, in the same slots and blocks."""
    sampling = SamplingParams(temperature=0.9, frequency_penalty=1.0)

    def text() -> list[list[int]]:
        rows = [Row(slot, prompt(20 + slot), sampling) for slot in range(3)]
        return running.generate(running.stepper(3), rows, 6)

    before = text()
    running.executor.reset()
    assert text() == before


@check("executor.shutdown.twice", "Shutdown may come twice, and before anything was loaded.")
def test_shutdown_is_idempotent(subject: Subject, start: Start) -> None:
    """Whoever handles an error shuts down without asking what has happened."""
    unused = subject.executor()
    unused.shutdown()
    unused.shutdown()
    running = start()
    running.executor.shutdown()
    running.executor.shutdown()


@check("executor.shutdown.again", "After a shutdown another executor starts in the same process.")
def test_another_executor_starts(start: Start) -> None:
    """It frees the device, and no state of it is the process's."""
    first = start()
    tokens = first.generate(first.stepper(), [Row(0, prompt(9))], 3)
    first.executor.shutdown()
    second = start()
    assert second.generate(second.stepper(), [Row(0, prompt(9))], 3) == tokens


@check("executor.shutdown.two", "Two executors in one process do not touch each other.")
def test_two_executors(start: Start, models: Models) -> None:
    """State belongs to the executor, not to a module."""
    one, other = start(), start(models(seed=1))
    alone = one.generate(one.stepper(), [Row(0, prompt(9))], 3)
    one.executor.reset()
    row, stepper, found = Row(0, prompt(9)), one.stepper(), []
    for slot in range(3):
        found += one.generate(stepper, [row], 1)[0]
        other.generate(other.stepper(), [Row(slot, prompt(9, salt=2))], 1)
    assert [found] == alone


@check(
    "executor.shutdown.unresolved",
    "Shutdown does not wait for a step that will never be sampled.",
    level=Level.EXTENDED,
    needs=Feature("late_inputs"),
    timeout=10,
)
def test_shutdown_with_a_step_in_flight(start: Start, numerics: Numerics) -> None:
    """A server that stops has such steps: it would stop by kill only."""
    running = start()
    running.submit(running.stepper().step([(Row(0, prompt(5)), 5)], late=True))
    begin = time.monotonic()
    running.executor.shutdown()
    numerics.record("seconds", time.monotonic() - begin, PROMPTLY)


def _buckets(can: Capabilities) -> list[Bucket]:
    """Two that are legal for what is declared."""
    multiple = dict.fromkeys(Dimension, 1)
    multiple |= {static.dimension: static.multiple_of for static in can.static_dimensions}
    return [
        Bucket(
            *(size * multiple[dimension] for dimension, size in zip(Dimension, sizes, strict=True))
        )
        for sizes in ((8, 1, 2), (16, 2, 4))
    ]
