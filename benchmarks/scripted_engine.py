"""`python scripted_engine.py FD`: an engine's process that computes nothing, for router_process.py.

Everything of the engine is real but its executor, which answers every row with the next token of
one story, STEP_MILLISECONDS after the step before.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infercore.capabilities import FULL, Capabilities
from infercore.child import Lifeline
from infercore.config import EngineConfig
from infercore.engine.engine import Engine
from infercore.engine.info import EngineInfo
from infercore.engine.limits import EngineLimits
from infercore.engine_process import run
from infercore.executor import (
    Bucket,
    CopyDirection,
    Executor,
    ExecutorConfig,
    GroupKind,
    Handle,
    KVGroup,
    KVGroups,
    Memory,
    Probe,
    Progress,
    Weights,
)  # fmt: skip
from infercore.hub import demo_path
from infercore.model_spec import ModelSpec
from infercore.sampling import RowStatus
from infercore.step import Int32, LateInputs, Step, StepResult
from infercore.text.tokenizer import Tokenizer

STORY = "Once upon a time there was a fox who lived near a river. One day she met a hen. "
BLOCKS, BLOCK_SIZE, LONGEST = 4096, 16, 1024


class _Done(Handle):
    def __init__(self, result: StepResult, due: float) -> None:
        self._result = result
        self._due = due

    def sample(self, late: LateInputs) -> None:
        raise AssertionError("no step is late")

    def result(self, timeout: float | None = None) -> StepResult:
        time.sleep(max(0.0, self._due - time.monotonic()))
        return self._result


class ScriptedExecutor(Executor):
    """Rows get words of the story by their positions."""

    def __init__(self, script: Sequence[int], step_seconds: float) -> None:
        self._script = np.array(script, np.int32)
        self._step_seconds = step_seconds
        self._due = 0.0

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True)

    def capabilities(self) -> Capabilities:
        return Capabilities(("float32",), (BLOCK_SIZE,), max_in_flight=2, prompt_logprobs=FULL)

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        return (KVGroup("full", GroupKind.FULL, (0,), BLOCK_SIZE, BLOCK_SIZE),)

    def memory(self) -> Memory:
        return Memory(0, 0, 0)

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        """Nothing is kept."""

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        return len(buckets)

    def submit(self, step: Step) -> Handle:
        rows = step.num_rows
        tokens = self._script[(step.context_len + 7 * step.slots) % len(self._script)]
        result = StepResult(
            step_id=step.step_id,
            tokens=tokens[:, None],
            n_tokens=step.sample.astype(np.int32),
            status=np.where(step.sample, RowStatus.OK, RowStatus.NOT_SAMPLED).astype(np.uint8),
            logprobs=np.full((rows, 1), -1.2345678, np.float32),
            top_ids=np.zeros((rows, 1, 0), np.int32),
            top_logprobs=np.zeros((rows, 1, 0), np.float32),
        )
        self._due = max(self._due, time.monotonic()) + self._step_seconds
        return _Done(result, self._due)

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        raise AssertionError("no block is copied")

    def health(self) -> None:
        """Always well."""

    def reset(self) -> None:
        """Nothing is kept."""

    def shutdown(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Scripted:
    """What a launch gives."""

    engine: Engine
    info: EngineInfo

    def close(self) -> None:
        """Nothing is held."""


def launch(config: EngineConfig, progress: Progress) -> Scripted:
    """An engine of the bundled model's words."""
    tokenizer = Tokenizer(demo_path())
    seconds = float(os.environ.get("STEP_MILLISECONDS", "10")) / 1e3
    executor = ScriptedExecutor(tokenizer.encode(STORY), seconds)
    groups = executor.load(None, None, None, progress)  # type: ignore[arg-type]
    engine = Engine(
        executor, groups, {"full": BLOCKS}, EngineLimits(max_model_len=LONGEST),
        eos_ids=(), vocab_size=4096,
    )  # fmt: skip
    facts: dict[str, Any] = {
        name: () if name in ("devices", "eos_ids") else "" if kind in (str, "str") else 0
        for name, kind in EngineInfo.__annotations__.items()
    }
    limits = {"max_model_len": LONGEST, "max_input_len": LONGEST - 1, "vocab_size": 4096}
    return Scripted(engine, EngineInfo(**facts | limits | {"prompt_logprobs": True}))


if __name__ == "__main__":
    code = run(Lifeline(int(sys.argv[1])), launch)
    sys.stderr.flush()
    os._exit(code)
