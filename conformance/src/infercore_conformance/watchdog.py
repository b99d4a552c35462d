"""Ends what does not end by itself: first the wait, and if that does not help, the process.

A backend that hangs in Python, on a lock or a queue, is interrupted where it waits, and its case
fails like any other. One that hangs in native code cannot be; then the process ends, and the
command goes on behind the case in a new one.
"""

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 5.0  # seconds from the one to the other
GOODBYE = 10.0  # seconds that the process may take to end


class Hung(Exception):
    """A case took longer than its check allows."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises Hung in the main thread, which must be the caller's, after `seconds`."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Hung(f"it hung: it did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # of whoever set it before
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def say_goodbye() -> None:
    """A thread that a backend left behind keeps Python from ending; nobody waits for it."""
    faulthandler.dump_traceback_later(GOODBYE, exit=True)
