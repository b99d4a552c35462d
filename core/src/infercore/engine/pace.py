"""How fast work leaves a queue, and so how long a newcomer should stay away."""

from collections import deque

_WINDOW = 30.0  # seconds that are looked back
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds that are advised


class Pace:
    """Counts what left, over the last half minute. Times are seconds on one clock."""

    def __init__(self) -> None:
        self._left: deque[tuple[float, int]] = deque()
        self._total = 0
        self._began = False

    def note(self, amount: int, now: float) -> None:
        """So much left the queue."""
        self._left.append((now, amount))
        self._total += amount
        self._began = True
        self._forget(now)

    def seconds_for(self, amount: int, now: float) -> float:
        """When so much will have left, if it goes on as it did: 1 to 60 seconds.

        The shortest if nothing ever left, the longest if nothing did for half a minute.
        """
        self._forget(now)
        if not self._total:
            return _LONGEST if self._began else _SHORTEST
        since = max(now - self._left[0][0], _SHORTEST)
        return min(max(amount * since / self._total, _SHORTEST), _LONGEST)

    def _forget(self, now: float) -> None:
        while self._left and now - self._left[0][0] > _WINDOW:
            self._total -= self._left.popleft()[1]
