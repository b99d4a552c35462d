"""Step times: every step lands in its phase, and its parts in their buckets."""

import pytest

from engine_traffic import GREEDY, Driver, make_engine, prompt
from faults import Fault
from infercore.engine.request import EngineStats, Request
from infercore.engine.step_times import (
    BOUNDS,
    BUILD,
    DECODE,
    EXECUTE,
    PARTS,
    PHASES,
    PREFILL,
    SCHEDULE,
    STEP,
    UPDATE,
    StepTimes,
)
from numpy_executor import NumpyExecutor

BUCKETS = len(BOUNDS) + 1


def counted(stats: EngineStats, phase: int, part: int) -> int:
    row = phase * len(PARTS) + part
    return sum(stats.step_counts[row * BUCKETS : (row + 1) * BUCKETS])


@pytest.mark.parametrize("ahead", [1, 2])
def test_every_step_is_counted_once_in_each_of_its_parts(ahead: int) -> None:
    engine = make_engine(NumpyExecutor(max_in_flight=ahead), max_batch_tokens=8)
    driver = Driver(engine)
    driver.add(Request(number, prompt(12), GREEDY) for number in range(3))
    driver.run()
    stats = engine.stats()
    assert len(stats.step_counts) == len(PHASES) * len(PARTS) * BUCKETS
    for part in range(len(PARTS)):
        steps = [counted(stats, phase, part) for phase in (PREFILL, DECODE)]
        assert sum(steps) == stats.steps
        assert min(steps) > 0
    assert sum(stats.prompts_per_step) == stats.steps
    assert stats.prompts_per_step[0] == counted(stats, DECODE, STEP)
    assert 0 < stats.joined_steps < stats.steps
    assert stats.phase_failures == (0, 0)
    # what the loop does itself is in its own time
    totals = [sum(stats.step_seconds[part :: len(PARTS)]) for part in range(len(PARTS))]
    assert totals[EXECUTE] + totals[UPDATE] >= totals[STEP] > 0
    own = totals[SCHEDULE] + totals[BUILD] + totals[UPDATE]
    assert own <= stats.own_seconds


def test_a_failed_step_is_counted_in_its_phase() -> None:
    engine = make_engine(NumpyExecutor(faults=[Fault(step=2)]))
    driver = Driver(engine)
    driver.add([Request(1, prompt(5), GREEDY)])
    driver.run()
    stats = engine.stats()
    assert stats.phase_failures == (0, 1)
    assert stats.failed_steps == 1
    assert counted(stats, DECODE, STEP) < counted(stats, DECODE, BUILD)


def test_time_that_steps_share_counts_for_the_earlier() -> None:
    times = StepTimes()
    times.retired(DECODE, submitted=1.0, executed=2.0, updated=2.5)
    times.retired(DECODE, submitted=1.5, executed=3.0, updated=3.25)
    row = DECODE * len(PARTS)
    assert times.seconds[row + EXECUTE] == 1.0 + 1.0
    assert times.seconds[row + UPDATE] == 0.5 + 0.25
    assert times.seconds[row + STEP] == 1.5 + 0.75
