"""StepWatch: whether the engine gets on with its work, as a restart's last resort would ask."""

import asyncio
import time
from collections.abc import Callable

from infercore_api.router.engine_client import EngineClient, EnginePhase

LOOK_SECONDS = 0.5  # as often as the engine tells its counters
_WORKING = (EnginePhase.READY, EnginePhase.DRAINING)


class StepWatch:
    """For how long the engine has had requests and finished no step.

    An engine that loads, or that is gone, does not stall: it makes no steps, and its requests
    have ended. clock: seconds that only rise.
    """

    def __init__(self, engine: EngineClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._steps = (-1, -1)
        self._since = clock()

    def stalled_seconds(self) -> float:
        """Look at the counters, and return the seconds since they moved or there was no work."""
        now, stats = self._clock(), self._engine.stats
        steps = (stats.steps, stats.failed_steps)
        has_work = stats.running + stats.waiting > 0
        if not has_work or steps != self._steps or self._engine.state.phase not in _WORKING:
            self._steps, self._since = steps, now
        return now - self._since

    async def run(self) -> None:
        """Look again and again, so that a moment without work is not missed."""
        while True:
            self.stalled_seconds()
            await asyncio.sleep(LOOK_SECONDS)
