"""One rank fails, or is gone: nobody waits for it, and the engine is told."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infercore.errors import ExecutorLost
from infercore_conformance import Level, check, thorough
from infercore_conformance import engine_variations as variations
from infercore_conformance.engine_driver import Driver
from infercore_conformance.engine_fixtures import Same, Serve
from infercore_conformance.engine_serving import TOGETHER, Serving
from infercore_conformance.engine_traffic import traffic
from infercore_conformance.fixtures import Models
from infercore_conformance.models import served
from infercore_conformance.profiles.ops.test_collective import THREADS
from infercore_conformance.ranks import MANY, Fuse, shared, with_fuse
from infercore_conformance.subject import Subject

RANKS = 2


@pytest.fixture
def folder(subject: Subject, models: Models) -> Path:
    name = served(subject.capabilities.architectures)[0]
    return models(name, **shared(name, kv_heads=2))


@pytest.fixture
def failing(subject: Subject, folder: Path) -> Iterator[tuple[Serving, Fuse]]:
    """A backend on two ranks, whose last one fails when the fuse is lit."""
    broken, fuse = with_fuse(subject)
    serving = Serving.start(broken, folder, ranks=RANKS)
    yield serving, fuse
    serving.executor.shutdown()


@check(
    "distributed.failed_step",
    "After a failed step all requests get what they would have got, on several ranks too.",
    level=Level.EXTENDED,
    needs=MANY,
)
@pytest.mark.parametrize("kv_intact", [pytest.param(True, marks=thorough), False])
def test_failed_step(serve: Serve, folder: Path, kv_intact: bool, same: Same) -> None:
    """All ranks ran the step, and its result is lost; a reset reaches the cache of each."""
    serving = serve(folder, ranks=RANKS)
    same(serving, *variations.failed_step(serving, kv_intact=kv_intact))


@check(
    "distributed.failed_rank",
    "One rank that fails within a step fails the step, and all requests go on.",
    level=Level.EXTENDED,
    needs=THREADS,
    timeout=60.0,
)
@pytest.mark.parametrize("countdown", [pytest.param(0, marks=thorough), 3])
def test_failed_rank(failing: tuple[Serving, Fuse], countdown: int, same: Same) -> None:
    """As after an out of memory on one device: the others wait in a sum, and must be released."""
    serving, fuse = failing
    requests = traffic(6)
    expected = serving.answers(requests, TOGETHER)
    driver = Driver(serving.engine(TOGETHER))
    driver.add(requests)
    driver.step()
    fuse.countdown, fuse.error = countdown, RuntimeError("out of memory on one rank")
    driver.run()
    assert fuse.blown == 1, "the last rank took no part in a sum"
    failed = driver.engine.stats().failed_steps
    assert failed == 1, f"one rank failed once, and {failed} steps failed"
    same(serving, requests, expected, driver.received)


@check(
    "distributed.lost_rank",
    "A rank that is gone ends the engine with an error that says so, and no request waits for it.",
    level=Level.EXTENDED,
    needs=THREADS,
    timeout=60.0,
)
def test_lost_rank(failing: tuple[Serving, Fuse]) -> None:
    """ExecutorLost reaches whoever steps the engine: the supervisor starts a new one.

    Tried again it would be lost again; hidden, its requests would hang until clients give up.
    """
    serving, fuse = failing
    driver = Driver(serving.engine(TOGETHER))
    driver.add(traffic(4))
    driver.step()
    fuse.error = ExecutorLost("rank 1 does not answer")
    with pytest.raises(ExecutorLost, match="rank 1 does not answer"):
        driver.run()
