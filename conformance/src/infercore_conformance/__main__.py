"""The process in which `infercore conformance run` runs pytest: python -m infercore_conformance."""

import sys

import pytest

from infercore_conformance.watchdog import say_goodbye

if __name__ == "__main__":
    status = pytest.main(sys.argv[1:])
    say_goodbye()
    sys.exit(status)
