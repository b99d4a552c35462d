"""The server's process, whose end is tied to that of the run which started it.

    python -m infercore_conformance.http_child serve …

A run that its watchdog ends tidies nothing up, and must leave no server behind.
"""

import ctypes
import runpy
import signal
import sys

MAIN = "infercore_api.cli.main"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """End with the parent, where the kernel can be asked to see to it, and become the server."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    runpy.run_module(MAIN, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
