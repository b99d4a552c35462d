"""What shows when core's engine serves: rows that move, requests that end, come back or fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from infercore.errors import StepFailed
from infercore.executor import ExecutorConfig, Handle, KVGroups, Progress, Weights
from infercore.model_spec import ModelSpec
from infercore.sampling import RowStatus, SamplingParams
from infercore.step import LateInputs, SlotInit, Step, StepResult
from planted.defect import defect

if TYPE_CHECKING:
    from planted.catalogue.late import Late

Load = Callable[[ModelSpec, Weights, ExecutorConfig, Progress], KVGroups]
Submit = Callable[[Step], Handle]
SIZE = 16  # tokens of a block, in the suite's own choice


def _started(step: Step, changed: Callable[[SlotInit], SlotInit]) -> Step:
    """`step` with other slots to start."""
    return replace(step, slot_init=tuple(map(changed, step.slot_init)))


def _sampled(step: Step, changed: Callable[[SamplingParams], SamplingParams]) -> Step:
    """`step` with other sampling parameters in the slots that it starts."""
    return _started(step, lambda init: replace(init, sampling=changed(init.sampling)))


@defect(at="step", caught_by="engine.same.batch")
def seed_is_of_the_row_below(step: Step) -> Step:
    """A row draws with its neighbour's seed."""
    return replace(step, seeds=np.roll(step.seeds, 1))


@defect(at="step", caught_by="engine.same.order")
def seed_counts_the_row(step: Step) -> Step:
    """A row's noise depends on where it stands in the step."""
    rows = np.arange(step.num_rows, dtype=np.uint64)
    return replace(step, seeds=step.seeds + rows)


@defect(at="step", caught_by="engine.same.chunk")
def positions_are_of_the_chunk(step: Step) -> Step:
    """Positions start anew with every chunk of a prompt."""
    positions = step.positions.copy()
    for start, stop in zip(step.query_start[:-1], step.query_start[1:], strict=True):
        if stop - start > 1:
            positions[start:stop] -= positions[start]
    return replace(step, positions=positions)


@defect(at="step", caught_by="engine.same.prefix_cache")
def first_position_is_zero(step: Step) -> Step:
    """A row that starts is taken to start at its first token, whatever was cached."""
    positions, new = step.positions.copy(), {init.slot for init in step.slot_init}
    for row, slot in enumerate(step.slots.tolist()):
        if slot in new:
            positions[step.query_start[row]] = 0
    return replace(step, positions=positions)


def _forgetful(init: SlotInit) -> SlotInit:
    known = np.append(init.prompt_ids, init.output_ids).astype(np.int32)
    return replace(init, prompt_ids=known, output_ids=known[:0])


@defect(at="step", caught_by="engine.same.preemption")
def output_becomes_prompt(step: Step) -> Step:
    """After a preemption the penalties forget what they counted."""
    return _started(step, _forgetful)


@defect(at="step", caught_by="engine.same.resume")
def a_resumed_row_has_no_output(step: Step) -> Step:
    """A row that is resumed is penalized for its own tokens only."""
    return _started(step, lambda init: replace(init, output_ids=init.output_ids[:0]))


@defect(at="step", caught_by="engine.same.block_order")
def tables_are_sorted(step: Step) -> Step:
    """A row's blocks are taken to have rising numbers."""
    return replace(step, block_table=np.sort(step.block_table, axis=-1))


@defect(at="step", caught_by="engine.same.used_blocks", stateful=True)
def slots_keep_their_parameters() -> Callable[[Step], Step]:
    """A slot samples for ever as its first request wanted."""
    first: dict[int, SamplingParams] = {}

    def changed(step: Step) -> Step:
        return _started(
            step, lambda init: replace(init, sampling=first.setdefault(init.slot, init.sampling))
        )

    return changed


@defect(at="step", caught_by="engine.same.step_ahead")
def placeholders_are_embedded(step: Step) -> Step:
    """A step that runs ahead takes the placeholder instead of the token."""
    return replace(step, token_source=np.full_like(step.token_source, -1))


@defect(at="step", caught_by="engine.same.failed_step")
def output_is_counted_twice(step: Step) -> Step:
    """A slot that starts again adds its output to what it had counted before."""

    def twice(init: SlotInit) -> SlotInit:
        output = np.append(init.output_ids, init.output_ids).astype(np.int32)
        return replace(init, output_ids=output)

    return _started(step, twice)


@defect(at="step", caught_by="engine.same.bucket", base="sim")
def noise_depends_on_the_shape(step: Step) -> Step:
    """A row draws otherwise in a larger step."""
    return replace(step, seeds=step.seeds + np.uint64(step.num_tokens))


@defect(at="step", caught_by="engine.same.everything", thorough=True)
def chunks_begin_with_a_block(step: Step) -> Step:
    """A chunk that begins inside a block has the positions of the block's start."""
    positions = step.positions.copy()
    for start, stop in zip(step.query_start[:-1], step.query_start[1:], strict=True):
        if stop - start > 1:
            positions[start:stop] -= positions[start] % SIZE
    return replace(step, positions=positions)


@defect(at="result", caught_by="engine.same.bits")
def last_bit_depends_on_the_batch(step_result: StepResult, step: Step, late: "Late") -> StepResult:
    """Log-probabilities are one bit larger where a step has few rows."""
    if step.num_rows > 2:
        return step_result
    larger = np.nextafter(step_result.logprobs, np.float32(np.inf))
    return replace(step_result, logprobs=larger)


@defect(at="step", caught_by="engine.choice")
def temperature_is_one(step: Step) -> Step:
    """Rows that sample do so as the model would have it, whatever temperature they ask for."""
    return _sampled(step, lambda s: replace(s, temperature=1.0) if s.temperature else s)


@defect(at="step", caught_by="engine.ends.min_tokens")
def min_tokens_is_one_less(step: Step) -> Step:
    """What ends a request is allowed one token early."""
    return _started(step, lambda init: replace(init, min_position=init.min_position - 1))


@defect(at="step", caught_by="engine.ends.reasons")
def ends_are_banned_for_good(step: Step) -> Step:
    """EOS and stop ids are never chosen, behind min_tokens neither."""
    return _started(step, lambda init: replace(init, min_position=2**30))


@defect(at="step", caught_by="engine.ends.abort", stateful=True)
def rows_do_not_close_up() -> Callable[[Step], Step]:
    """When a row leaves, those behind it draw with the seeds of the places that they move to."""
    seeds = np.zeros(0, np.uint64)

    def changed(step: Step) -> Step:
        nonlocal seeds
        left = step.num_rows < len(seeds)
        before, seeds = seeds, step.seeds
        return replace(step, seeds=before[: step.num_rows].copy()) if left else step

    return changed


@defect(at="Executor.submit", caught_by="engine.ends.blocks", stateful=True)
def blocks_are_used_up() -> Callable[[Submit, Step], Handle]:
    """A block that was handed out twice is not to be had a third time."""
    handed_out: dict[int, int] = {}

    def submit(right: Submit, step: Step) -> Handle:
        for block in step.fresh_blocks[0].tolist():
            handed_out[block] = handed_out.get(block, 0) + 1
            if handed_out[block] > 2:
                raise StepFailed(f"step {step.step_id}: block {block} is in use")
        return right(step)

    return submit


@defect(at="step", caught_by="engine.ends.no_token")
def bias_is_lost(step: Step) -> Step:
    """A logit bias does not reach the sampler."""
    return _sampled(step, lambda sampling: replace(sampling, logit_bias={}))


@defect(at="result", caught_by="engine.ends.not_finite")
def not_finite_is_not_told(result: StepResult, step: Step, late: "Late") -> StepResult:
    """A row whose scores are no numbers yields its first token, as if nothing were wrong."""
    wrong = result.status == RowStatus.NOT_FINITE
    status = np.where(wrong, RowStatus.OK, result.status).astype(np.uint8)
    return replace(result, status=status, n_tokens=np.where(wrong, 1, result.n_tokens))


@defect(at="step", caught_by="engine.ends.culprit", stateful=True)
def noise_counts_the_draws() -> Callable[[Step], Step]:
    """A row's noise counts its draws, those of failed steps too, and not its position."""
    next_: dict[int, int] = {}

    def changed(step: Step) -> Step:
        positions = step.sample_positions.copy()
        for row in np.flatnonzero(step.sample).tolist():
            seed = int(step.seeds[row])
            positions[row] = next_.setdefault(seed, int(positions[row]))
            next_[seed] += 1
        return replace(step, sample_positions=positions)

    return changed


@defect(at="late", caught_by="engine.masks")
def masks_are_for_others(late: LateInputs, step: Step) -> LateInputs:
    """Each mask binds the next row that has one."""
    return replace(late, rows=np.roll(late.rows, 1))


def _scaled(spec: ModelSpec, factor: float) -> ModelSpec:
    attentions = [replace(a, scale=a.scale * factor) for a in (x.attention for x in spec.layers)]
    layers = [replace(x, attention=a) for x, a in zip(spec.layers, attentions, strict=True)]
    return replace(spec, layers=tuple(layers))


@defect(at="Executor.load", caught_by="engine.reference.models")
def scores_are_too_large(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Attention has a scale of its own, a tenth too large."""
    return right(_scaled(spec, 1.1), weights, config, progress)


@defect(at="Executor.load", caught_by="engine.reference.dtypes")
def scores_are_too_large_in_float32(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """The kernel for float32 has another scale than the others."""
    wrong = _scaled(spec, 1.1) if config.dtype == "float32" else spec
    return right(wrong, weights, config, progress)


@defect(at="Executor.load", caught_by="executor.model.dtypes")
def scores_are_too_large_in_16_bits(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """The kernels for 16 bits have another scale than that for float32."""
    wrong = spec if config.dtype == "float32" else _scaled(spec, 2)
    return right(wrong, weights, config, progress)


@defect(at="step", caught_by="engine.prompt_logprobs")
def last_target_is_the_first_token(step: Step) -> Step:
    """The target of a chunk's last token, which is in no chunk yet, is taken for token 0."""
    targets, last = step.prompt_targets.copy(), step.query_start[1:] - 1
    targets[last] = np.where(targets[last] >= 0, 0, -1)
    return replace(step, prompt_targets=targets)
