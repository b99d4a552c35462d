"""`python -m toy_engine_process FD`: an engine's process on the NumPy executor, quick to start.

The variable TOY_FAULT plants one: "refuse" (the start is refused), "die" (every life ends while it
loads), "stall" (loading never ends), "hang" (the first step of the first life never ends; the file
TOY_MARK tells lives apart). TOY_BLOCKS is the number of its KV blocks, of 16 tokens each.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from engine_traffic import INFO
from infercore.child import Lifeline
from infercore.config import EngineConfig
from infercore.engine.engine import Engine
from infercore.engine.info import EngineInfo
from infercore.engine.limits import EngineLimits
from infercore.engine_process import run
from infercore.errors import MemoryBudgetError
from infercore.executor import Handle, Progress
from infercore.step import Step
from numpy_executor import NumpyExecutor

STEP_SECONDS = 0.01  # so that a stream lasts as long as its number of tokens says
BLOCKS = int(os.environ.get("TOY_BLOCKS", "512"))


class SlowExecutor(NumpyExecutor):
    """Takes its time, and hangs once if it is to."""

    def submit(self, step: Step) -> Handle:
        time.sleep(STEP_SECONDS)
        if os.environ.get("TOY_FAULT") == "hang" and not (mark := _mark()).exists():
            mark.touch()
            time.sleep(3600)
        return super().submit(step)


@dataclass(frozen=True)
class Toy:
    """What a launch gives."""

    engine: Engine
    info: EngineInfo

    def close(self) -> None:
        """Nothing is held."""


def launch(config: EngineConfig, progress: Progress) -> Toy:
    """An engine for any model: its tokens mean nothing."""
    progress("load", 1, 2)
    fault = os.environ.get("TOY_FAULT")
    if fault == "refuse":
        raise MemoryBudgetError("the toy does not fit; buy another")
    if fault == "die":
        os._exit(9)
    if fault == "stall":
        time.sleep(3600)
    executor = SlowExecutor(block_size=16)
    blocks = {group.name: BLOCKS for group in executor.groups}
    executor.allocate_kv(blocks)
    longest = config.max_model_len or 1024
    engine = Engine(
        executor,
        executor.groups,
        blocks,
        EngineLimits(max_model_len=longest, max_num_seqs=8, max_batch_tokens=256),
        eos_ids=(),
        vocab_size=2**20,  # any prompt will do
    )
    progress("load", 2, 2)
    info = replace(
        INFO,
        max_model_len=longest,
        max_input_len=longest - 1,
        kv_tokens=(BLOCKS - 1) * 16,
        eos_ids=(),
    )
    return Toy(engine, info)


def _mark() -> Path:
    return Path(os.environ["TOY_MARK"])


if __name__ == "__main__":
    code = run(Lifeline(int(sys.argv[1])), launch)
    sys.stderr.flush()
    os._exit(code)
