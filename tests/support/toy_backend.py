"""A backend that computes nothing, and checks of its own that end in every way there is."""

from pathlib import Path

from plugin_packages import install, plugin

EXECUTOR = """
from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.executor import Executor, Probe


class ToyExecutor(Executor):
    @classmethod
    def probe(cls):
        return Probe({available}, "its cable is loose", ("a toy",))

    def capabilities(self):
        return Capabilities(
            dtypes=("float32",),
            block_sizes=(16, 32),
            late_inputs=FULL,
            block_copy=Capability(Support.UNSUPPORTED, "it has one memory"),
        )

    def shutdown(self):
        pass

    def load(self, spec, weights, config, progress):
        raise NotImplementedError

    memory = allocate_kv = warm_up = submit = copy_blocks = health = reset = load
"""

CHECKS = """
import os
import signal
import time

import pytest

from infercore_conformance import Feature, Level, check, thorough


@check("toy.passes", "It passes.")
def test_passes(capabilities, numerics):
    assert capabilities.late_inputs
    numerics.record("distance", 0.5, 1.0)


@check("toy.fails", "It fails.")
def test_fails():
    assert 1 + 1 == 3, "arithmetic is broken"


@check("toy.sizes", "It passes for every block size but 32.")
def test_sizes(block_size):
    assert block_size != 32


@check("toy.skips", "It skips itself.")
def test_skips():
    pytest.skip("the weather")


@check("toy.crashes", "It ends the process.")
def test_crashes():
    os.abort()


@check("toy.hangs", "It never ends.", timeout=1)
def test_hangs():
    time.sleep(1000)


@check("toy.stuck", "It never ends, and cannot be interrupted.", timeout=1)
def test_stuck():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(1000)


@check("toy.works", "It works undeclared.", level=Level.EXTENDED, needs=Feature("graph_capture"))
@pytest.mark.parametrize("number", range(3))
def test_works(number):
    assert number == 0, "a probe runs once"


@check("toy.broken", "It is undeclared.", level=Level.EXTENDED, needs=Feature("prompt_logprobs"))
def test_broken():
    raise RuntimeError("nobody wrote it")


@check("toy.refused", "It is refused.", level=Level.EXTENDED, needs=Feature("block_copy"))
def test_refused():
    raise AssertionError("what is unsupported does not run")


@check("toy.new", "It is new, and fails.", level=Level.PROVISIONAL)
def test_new():
    raise AssertionError("not scored")


@check("toy.long", "It takes long.")
@thorough
def test_long():
    raise AssertionError("too long for --quick")
"""


def install_toy(site: Path, *, available: bool = True) -> Path:
    """Install backend toy below `site`, which is to be on sys.path; returns its checks' folder."""
    source = EXECUTOR.replace("{available}", str(available)) + plugin(
        "@hookimpl\ndef register_backend():\n    return ToyExecutor"
    )
    install(site, "acme", {"backend.toy": "acme_toy"}, {"acme_toy": source})
    checks = site / "checks"
    checks.mkdir()
    (checks / "test_toy.py").write_text(CHECKS)
    return checks
