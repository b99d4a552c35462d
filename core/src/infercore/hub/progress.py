"""Counts the bytes of a hub download, fed by the library's progress bars."""

import threading
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from infercore.executor import Progress

PHASE = "download"


class Cancelled(Exception):
    """Raised inside the library's threads to end a download that nobody waits for."""


class ByteMeter:
    """Tells `progress` how many of `total` bytes have come. A context manager around the download.

    The library draws several bars over the same bytes, of which one counts what came over the
    network and one what was written: the one ahead is told.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._lock = threading.Lock()
        self._done: dict[int, float] = {}
        self._cancelled = False

    def __enter__(self) -> Self:
        if self._total:
            self._progress(PHASE, 0, self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._total and error is None:
            self._progress(PHASE, self._total, self._total)

    def cancel(self) -> None:
        """End the download at the next byte that is counted."""
        self._cancelled = True

    def bar_class(self) -> type[Any]:
        """A tqdm class for the library: it draws nothing and counts here."""
        meter = self

        class Bar(tqdm):  # type: ignore[misc]  # the library has no types
            monitor_interval = 0  # no thread that watches for bars to redraw

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._counts_bytes = kwargs.get("unit") == "B"
                kwargs["disable"] = True
                super().__init__(*args, **kwargs)

            def update(self, n: float | None = 1) -> None:
                if self._counts_bytes:
                    meter.count(id(self), n or 0)

        Bar.set_lock(threading.RLock())  # tqdm's own would start a process
        return Bar

    def count(self, bar: int, n: float) -> None:
        """Add `n` bytes to a bar; negative when a piece must come again."""
        if self._cancelled:
            raise Cancelled
        with self._lock:  # the library's threads count at the same time
            self._done[bar] = self._done.get(bar, 0) + n
            self._progress(PHASE, min(int(max(self._done.values())), self._total), self._total)
