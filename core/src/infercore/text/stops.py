"""Finds stop strings in a text that arrives in pieces, reading each character once.

Aho and Corasick (1975): all strings in one automaton, whose state is the longest end of the text
so far that begins one of them.
"""

from collections import deque
from collections.abc import Iterable


class StopMatcher:
    """The match that completes first wins; of several completing together, the longest.

    So it does not depend on how the text is cut into pieces. Empty strings never match.
    """

    __slots__ = ("_depth", "_fail", "_match", "_next", "_state")

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self._depth = [0]
        self._match: list[str | None] = [None]
        self._state = 0
        for stop in filter(None, stops):
            self._add(stop)
        self._link()

    @property
    def held(self) -> int:
        """Length of the longest end of the text that may still become a stop string."""
        return self._depth[self._state]

    def feed(self, text: str) -> tuple[str, int] | None:
        """Read on. Returns (stop string, index in `text` after its end), or None."""
        state, edges, fail, match = self._state, self._next, self._fail, self._match
        if not state and edges[0].keys().isdisjoint(text):
            return None
        for index, character in enumerate(text):
            while state and character not in edges[state]:
                state = fail[state]
            state = edges[state].get(character, 0)
            stop = match[state]
            if stop is not None:
                self._state = 0
                return stop, index + 1
        self._state = state
        return None

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
            state = self._next[state][character]
        self._match[state] = stop

    def _link(self) -> None:
        """Breadth first: a state fails to the longest proper end of itself that is a state."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                fail = self._fail[state]
                while fail and character not in self._next[fail]:
                    fail = self._fail[fail]
                self._fail[child] = self._next[fail].get(character, 0)
                self._match[child] = self._match[child] or self._match[self._fail[child]]
                queue.append(child)
