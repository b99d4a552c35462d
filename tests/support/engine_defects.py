"""Executors with one defect each, planted through the public contract, and who must catch it."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from infercore.backend import Backend
from infercore.executor import ExecutorConfig, Handle, KVGroups, Progress, Weights
from infercore.model_spec import ModelSpec
from infercore.step import LateInputs, SlotInit, Step, StepResult
from infercore_conformance.engine_wrappers import Around
from infercore_conformance.subject import build
from infercore_cpu.backend import CpuBackend
from infercore_sim.backend import SimBackend


class Sound(Around):
    """The CPU backend's executor, on which each defect below is planted.

    caught_by: the check that must fail, and `says`, a pattern, why.
    """

    backend: ClassVar[type[Backend]] = CpuBackend
    caught_by: ClassVar[str] = ""
    says: ClassVar[str] = r"token \d+ is \d+, not \d+|logprobs_max_abs is"

    def __init__(self) -> None:
        super().__init__(build(self.backend))


class SeedOfTheRowBelow(Sound):
    caught_by = "engine.same.batch"

    def submit(self, step: Step) -> Handle:
        return self.inner.submit(replace(step, seeds=np.roll(step.seeds, 1)))


class SeedByRow(Sound):
    caught_by = "engine.same.order"

    def submit(self, step: Step) -> Handle:
        rows = np.arange(step.num_rows, dtype=np.uint64)
        return self.inner.submit(replace(step, seeds=step.seeds + rows))


class PositionsOfTheChunk(Sound):
    caught_by = "engine.same.chunk"

    def submit(self, step: Step) -> Handle:
        positions = step.positions.copy()
        for start, stop in zip(step.query_start[:-1], step.query_start[1:], strict=True):
            if stop - start > 1:
                positions[start:stop] -= positions[start]
        return self.inner.submit(replace(step, positions=positions))


class FirstPositionIsZero(Sound):
    caught_by = "engine.same.prefix_cache"

    def submit(self, step: Step) -> Handle:
        positions, new = step.positions.copy(), {init.slot for init in step.slot_init}
        for row, slot in enumerate(step.slots.tolist()):
            if slot in new:
                positions[step.query_start[row]] = 0
        return self.inner.submit(replace(step, positions=positions))


class OutputIsPrompt(Sound):
    """After a preemption the penalties forget what they counted."""

    caught_by = "engine.same.preemption"

    def submit(self, step: Step) -> Handle:
        return self.inner.submit(replace(step, slot_init=tuple(map(_forgetful, step.slot_init))))


class ResumesWithoutOutput(OutputIsPrompt):
    caught_by = "engine.same.resume"


class BlocksAreInOrder(Sound):
    caught_by = "engine.same.block_order"

    def submit(self, step: Step) -> Handle:
        return self.inner.submit(replace(step, block_table=np.sort(step.block_table, axis=-1)))


class SlotsKeepTheirParameters(Sound):
    caught_by = "engine.same.used_blocks"

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[int, SlotInit] = {}

    def submit(self, step: Step) -> Handle:
        inits = (
            replace(each, sampling=self._first.setdefault(each.slot, each).sampling)
            for each in step.slot_init
        )
        return self.inner.submit(replace(step, slot_init=tuple(inits)))

    def reset(self) -> None:
        self._first.clear()
        self.inner.reset()


class StaleToken(Sound):
    """What runs ahead takes the placeholder instead of the token."""

    caught_by = "engine.same.step_ahead"

    def submit(self, step: Step) -> Handle:
        return self.inner.submit(replace(step, token_source=np.full_like(step.token_source, -1)))


class FailuresCount(Sound):
    """A slot that starts again keeps the tokens of the step that failed."""

    caught_by = "engine.same.failed_step"

    def submit(self, step: Step) -> Handle:
        again = tuple(
            replace(each, output_ids=np.append(each.output_ids, each.output_ids).astype(np.int32))
            for each in step.slot_init
        )
        return self.inner.submit(replace(step, slot_init=again))


class SeedByShape(Sound):
    backend = SimBackend
    caught_by = "engine.same.bucket"

    def submit(self, step: Step) -> Handle:
        return self.inner.submit(replace(step, seeds=step.seeds + np.uint64(step.num_tokens)))


class NoTemperature(Sound):
    caught_by = "engine.choice"
    says = r"score_below_the_best is"

    def submit(self, step: Step) -> Handle:
        inits = (
            replace(each, sampling=replace(each.sampling, temperature=1.0))
            if each.sampling.temperature
            else each
            for each in step.slot_init
        )
        return self.inner.submit(replace(step, slot_init=tuple(inits)))


class EndsEarly(Sound):
    caught_by = "engine.ends.min_tokens"
    says = r"request 1: "

    def submit(self, step: Step) -> Handle:
        inits = (replace(each, min_position=each.min_position - 1) for each in step.slot_init)
        return self.inner.submit(replace(step, slot_init=tuple(inits)))


class BiasIsLost(Sound):
    caught_by = "engine.ends.no_token"
    says = r"it ended by FinishReason.LENGTH"

    def submit(self, step: Step) -> Handle:
        inits = (
            replace(each, sampling=replace(each.sampling, logit_bias={})) for each in step.slot_init
        )
        return self.inner.submit(replace(step, slot_init=tuple(inits)))


class WrongScale(Sound):
    caught_by = "engine.reference.models"

    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        layers = tuple(
            replace(each, attention=replace(each.attention, scale=each.attention.scale * 1.1))
            for each in spec.layers
        )
        return self.inner.load(replace(spec, layers=layers), weights, config, progress)


class WrongScaleInFloat32(WrongScale):
    caught_by = "engine.reference.dtypes"
    says = r"logprobs_max_abs_float32 is"


class TargetOfTheNextChunk(Sound):
    """The target of a chunk's last token, which is in no chunk yet, is taken for another."""

    caught_by = "engine.prompt_logprobs"
    says = r"logprob_max_abs is"

    def submit(self, step: Step) -> Handle:
        targets = step.prompt_targets
        last = step.query_start[1:] - 1
        shifted = targets.copy()
        shifted[last] = np.where(targets[last] >= 0, 0, -1)
        return self.inner.submit(replace(step, prompt_targets=shifted))


class MasksAreForOthers(Sound):
    caught_by = "engine.masks"
    says = r"token \d+, and only .* may come|token \d+ is"

    def submit(self, step: Step) -> Handle:
        return _MasksRolled(self.inner.submit(step))


class _MasksRolled(Handle):
    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def sample(self, late: LateInputs) -> None:
        self._handle.sample(replace(late, rows=np.roll(late.rows, 1)))

    def result(self, timeout: float | None = None) -> StepResult:
        return self._handle.result(timeout)


def _forgetful(init: SlotInit) -> SlotInit:
    known = np.append(init.prompt_ids, init.output_ids).astype(np.int32)
    return replace(init, prompt_ids=known, output_ids=known[:0])


class SoundSim(Sound):
    """The simulated device's executor."""

    backend = SimBackend


DEFECTS = [
    SeedOfTheRowBelow,
    SeedByRow,
    PositionsOfTheChunk,
    FirstPositionIsZero,
    OutputIsPrompt,
    ResumesWithoutOutput,
    BlocksAreInOrder,
    SlotsKeepTheirParameters,
    StaleToken,
    FailuresCount,
    SeedByShape,
    NoTemperature,
    EndsEarly,
    BiasIsLost,
    WrongScale,
    WrongScaleInFloat32,
    TargetOfTheNextChunk,
    MasksAreForOthers,
]
