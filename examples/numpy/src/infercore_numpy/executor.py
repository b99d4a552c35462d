"""The Executor contract on NumPy: one step at a time, computed when it is submitted."""

import logging
import os
import tracemalloc
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.errors import StepFailed, UnsupportedModel
from infercore.executor import (
    Bucket,
    CopyDirection,
    Executor,
    ExecutorConfig,
    Handle,
    KVGroups,
    Memory,
    Probe,
    Progress,
    Weights,
)
from infercore.kv_groups import kv_groups
from infercore.model_spec import ModelSpec
from infercore.rehearsal import rehearsal
from infercore.sampling import Choice, RowStatus, choose, log_softmax, top_logprobs
from infercore.step import Bool, Float32, Int32, LateInputs, SlotInit, Step, StepResult, UInt32
from infercore_numpy.model import Model

log = logging.getLogger(__name__)

NO = Capability(Support.UNSUPPORTED, "this example shows the contract, not what NumPy could do")


class Slot:
    """What choosing needs to know of a sequence's past."""

    def __init__(self, init: SlotInit) -> None:
        self.init = init
        self.output = init.output_ids.tolist()

    def choose(self, logits: Float32, seed: int, position: int, allowed: Bool | None) -> Choice:
        """The next token, which joins the output."""
        init = self.init
        choice = choose(
            logits,
            init.sampling,
            prompt_ids=init.prompt_ids,
            output_ids=self.output,
            seed=seed,
            position=position,
            allowed=allowed,
            banned=init.stop_ids.tolist() if position < init.min_position else (),
        )
        if choice.status is RowStatus.OK:
            self.output.append(choice.token)
        return choice


class NumpyHandle(Handle):
    """What is finished when it is handed out, but for late steps, which wait for their inputs."""

    def __init__(self, finish: Callable[[LateInputs | None], StepResult], late: bool) -> None:
        self._finish = finish
        self._result = None if late else finish(None)

    def sample(self, late: LateInputs) -> None:
        self._result = self._finish(late)

    def result(self, timeout: float | None = None) -> StepResult:
        if self._result is None:
            raise TimeoutError("the step waits for its late inputs")
        return self._result


class NumpyExecutor(Executor):
    """Any model family of core, in float32. Nothing is in flight when `submit` returns."""

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, devices=(f"NumPy {np.__version__}",))

    def capabilities(self) -> Capabilities:
        return Capabilities(
            dtypes=("float32",),
            block_sizes=(16, 32, 64, 128),
            batch_tokens=256,
            late_inputs=FULL,
            watermark=FULL,
            prompt_logprobs=FULL,
            batch_invariant=NO,
            activation_int8=NO,
            block_copy=NO,
            graph_capture=NO,
        )

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        if config.ranks != 1:
            raise UnsupportedModel(f"NumPy serves on one rank, not on {config.ranks}")
        progress("load", 0, 1)
        if config.threads is not None:
            log.info("NumPy's BLAS takes its threads from its own variables, not from here")
        self.config = config
        self.groups = kv_groups(spec, config.block_size, itemsize=4)
        self.model = Model(spec, weights, self.groups)
        self.reset()
        progress("load", 1, 1)
        return self.groups

    def memory(self) -> Memory:
        self.allocate_kv({group.name: 1 for group in self.groups})
        tracemalloc.start()
        self.submit(rehearsal(self.config, len(self.groups)))
        workspace = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.reset()
        weights = sum(array.nbytes for array in self.model.arrays.values())
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(self.config.memory_budget or weights + free, weights, workspace)

    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        self.model.allocate(num_blocks)

    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        progress("warm up", len(buckets), len(buckets))
        return len(buckets)

    def submit(self, step: Step) -> Handle:
        if step.extras:
            unknown = ", ".join(sorted(step.extras))
            raise StepFailed(f"numpy does not know the extras {unknown}", retryable=False)
        assert (step.token_source < 0).all(), "nothing runs ahead where one step is in flight"
        for init in step.slot_init:
            self.slots[init.slot] = Slot(init)
        hidden = self.model.forward(step)
        return NumpyHandle(lambda late: self.sample(step, hidden, late), step.late)

    def sample(self, step: Step, hidden: Float32, late: LateInputs | None) -> StepResult:
        """Choose for every row that wants a token and was not dropped."""
        rows, shown = step.num_rows, max(0, int(step.num_logprobs.max()))
        result = StepResult.blank(step.step_id, rows, shown)
        masks = {} if late is None else dict(zip(late.rows.tolist(), late.bitmask, strict=True))
        for row in np.flatnonzero(step.sample).tolist():
            if late is not None and late.drop[row]:
                result.status[row] = RowStatus.DROPPED
                continue
            logits = self.model.logits(hidden[step.query_start[row + 1] - 1])
            allowed = unpacked(masks[row], len(logits)) if row in masks else None
            seed, position = int(step.seeds[row]), int(step.sample_positions[row])
            choice = self.slots[int(step.slots[row])].choose(logits, seed, position, allowed)
            result.tokens[row], result.logprobs[row] = choice.token, choice.logprob
            result.status[row] = choice.status
            result.n_tokens[row] = choice.status is RowStatus.OK
            if shown:
                result.top_ids[row, 0], result.top_logprobs[row, 0] = top_logprobs(logits, shown)
        self.report_prompt(step, hidden, shown, result)
        return result

    def report_prompt(self, step: Step, hidden: Float32, shown: int, result: StepResult) -> None:
        """Log-probabilities of the prompt's own tokens, where the step asks for them."""
        wanted = np.flatnonzero(step.prompt_targets >= 0)
        if not len(wanted):
            return
        result.prompt_logprobs = np.zeros(step.num_tokens, np.float32)
        result.prompt_top_ids = np.zeros((step.num_tokens, shown), np.int32)
        result.prompt_top_logprobs = np.zeros((step.num_tokens, shown), np.float32)
        for at in wanted.tolist():
            logits = self.model.logits(hidden[at])
            result.prompt_logprobs[at] = log_softmax(logits)[step.prompt_targets[at]]
            result.prompt_top_ids[at], result.prompt_top_logprobs[at] = top_logprobs(logits, shown)

    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        if direction is not CopyDirection.DEVICE_TO_DEVICE:
            raise StepFailed("numpy keeps no blocks elsewhere; block_copy is not declared")
        index = [each.name for each in self.groups].index(group)
        cache = self.model.caches[index]
        cache[:, :, dst] = cache[:, :, src]
        return NumpyHandle(lambda late: StepResult.blank(-1, rows=0), late=False)

    def health(self) -> None:
        """NumPy always answers."""

    def reset(self) -> None:
        self.slots: dict[int, Slot] = {}

    def shutdown(self) -> None:
        self.reset()


def unpacked(words: UInt32, vocab_size: int) -> Bool:
    """bool[V] of a mask in uint32 words, little end first."""
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    return bits[:vocab_size].astype(np.bool_)
