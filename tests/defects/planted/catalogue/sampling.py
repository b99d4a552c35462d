"""How tokens are chosen, and what a slot keeps for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from infercore.sampling import SamplingParams
from infercore.step import LateInputs, SlotInit, Step, StepResult
from planted.defect import defect


def _with_inits(step: Step, changed: Callable[[SlotInit], SlotInit]) -> Step:
    return replace(step, slot_init=tuple(map(changed, step.slot_init)))


def _with_sampling(step: Step, **values: Any) -> Step:
    """With these parameters in every slot that starts."""

    def changed(init: SlotInit) -> SlotInit:
        kept: SamplingParams = replace(init.sampling, **values)
        return replace(init, sampling=kept)

    return _with_inits(step, changed)


@defect(at="step", caught_by="executor.sampling.seed")
def seeds_are_ignored(step: Step) -> Step:
    """All rows have one seed."""
    return replace(step, seeds=np.zeros_like(step.seeds))


@defect(at="step", caught_by="executor.sampling.definition")
def seeds_are_cut(step: Step) -> Step:
    """A seed's upper 32 bits are lost."""
    return replace(step, seeds=step.seeds % np.uint64(2**32))


@defect(at="step", caught_by="executor.sampling.seed")
def noise_depends_on_the_row(step: Step) -> Step:
    """A row's number goes into its noise."""
    seeds = step.seeds + np.arange(step.num_rows, dtype=np.uint64)
    return replace(step, seeds=seeds.astype(np.uint64))


@defect(at="step", caught_by="executor.sampling.seed")
def noise_depends_on_the_slot(step: Step) -> Step:
    """A slot's number goes into its noise."""
    return replace(step, seeds=step.seeds + step.slots.astype(np.uint64))


@defect(at="step", caught_by="executor.sampling.seed", stateful=True)
def noise_has_state() -> Callable[[Step], Step]:
    """Noise comes from a generator that goes on from step to step."""
    steps = [0]

    def submitted(step: Step) -> Step:
        steps[0] += 1
        return replace(step, sample_positions=step.sample_positions + np.int32(steps[0]))

    return submitted


@defect(at="step", caught_by="executor.sampling.definition")
def noise_is_one_position_early(step: Step) -> Step:
    """Noise is that of the position before."""
    return replace(step, sample_positions=step.sample_positions - np.int32(1))


@defect(at="step", caught_by="executor.sampling.definition")
def temperature_is_ignored(step: Step) -> Step:
    """Every row that is sampled has temperature 1."""
    return _with_inits(
        step,
        lambda init: replace(
            init, sampling=replace(init.sampling, temperature=float(not init.sampling.greedy))
        ),
    )


@defect(at="step", caught_by="executor.sampling.greedy")
def greedy_rows_take_noise(step: Step) -> Step:
    """A row of temperature 0 is sampled."""
    return _with_sampling(step, temperature=1.0)


@defect(at="step", caught_by="executor.sampling.definition")
def top_k_is_one_more(step: Step) -> Step:
    """One token more than top_k is kept."""
    return _with_inits(
        step,
        lambda init: replace(
            init,
            sampling=replace(
                init.sampling, top_k=init.sampling.top_k + (1 if init.sampling.top_k else 0)
            ),
        ),
    )


@defect(at="step", caught_by="executor.sampling.definition")
def top_p_is_ignored(step: Step) -> Step:
    """There is no top_p."""
    return _with_sampling(step, top_p=1.0)


@defect(at="step", caught_by="executor.sampling.definition")
def typical_p_is_ignored(step: Step) -> Step:
    """There is no typical_p."""
    return _with_sampling(step, typical_p=1.0)


@defect(at="step", caught_by="executor.sampling.definition")
def min_p_is_ignored(step: Step) -> Step:
    """There is no min_p."""
    return _with_sampling(step, min_p=0.0)


@defect(at="step", caught_by="executor.sampling.definition")
def bias_is_ignored(step: Step) -> Step:
    """There is no logit bias."""
    return _with_sampling(step, logit_bias={})


@defect(at="step", caught_by="executor.sampling.definition")
def bias_of_one_token_only(step: Step) -> Step:
    """Of several biases the first one counts."""
    return _with_inits(
        step,
        lambda init: replace(
            init,
            sampling=replace(
                init.sampling, logit_bias=dict(list(init.sampling.logit_bias.items())[:1])
            ),
        ),
    )


@defect(at="step", caught_by="executor.sampling.definition")
def frequency_is_ignored(step: Step) -> Step:
    """There is no frequency penalty."""
    return _with_sampling(step, frequency_penalty=0.0)


@defect(at="step", caught_by="executor.sampling.definition")
def presence_is_ignored(step: Step) -> Step:
    """There is no presence penalty."""
    return _with_sampling(step, presence_penalty=0.0)


@defect(at="step", caught_by="executor.sampling.definition")
def presence_counts_every_time(step: Step) -> Step:
    """The presence penalty grows with every occurrence."""
    return _with_inits(
        step,
        lambda init: replace(
            init,
            sampling=replace(
                init.sampling,
                frequency_penalty=init.sampling.frequency_penalty + init.sampling.presence_penalty,
                presence_penalty=0.0,
            ),
        ),
    )


@defect(at="step", caught_by="executor.sampling.definition")
def penalties_count_the_prompt(step: Step) -> Step:
    """Frequency and presence penalties count the prompt with the output."""
    return _with_inits(
        step,
        lambda init: replace(init, output_ids=np.concatenate([init.prompt_ids, init.output_ids])),
    )


@defect(at="step", caught_by="executor.sampling.repetition")
def repetition_is_ignored(step: Step) -> Step:
    """There is no repetition penalty."""
    return _with_sampling(step, repetition_penalty=1.0)


@defect(at="step", caught_by="executor.sampling.repetition")
def repetition_forgets_the_prompt(step: Step) -> Step:
    """The repetition penalty counts the output only."""
    return _with_inits(step, lambda init: replace(init, prompt_ids=init.prompt_ids[:0]))


@defect(at="step", caught_by="executor.sampling.stop_ids")
def stop_ids_come_at_once(step: Step) -> Step:
    """Stop ids are not held back."""
    return _with_inits(step, lambda init: replace(init, min_position=0))


@defect(at="step", caught_by="executor.sampling.stop_ids")
def stop_ids_come_one_early(step: Step) -> Step:
    """Stop ids are held back one position too few."""
    return _with_inits(step, lambda init: replace(init, min_position=init.min_position - 1))


@defect(at="step", caught_by="executor.sampling.stop_ids")
def stop_ids_come_one_late(step: Step) -> Step:
    """Stop ids are held back one position too many."""
    return _with_inits(step, lambda init: replace(init, min_position=init.min_position + 1))


@defect(at="step", caught_by="executor.sampling.stop_ids")
def only_the_first_stop_id_is_held(step: Step) -> Step:
    """Of several stop ids one is held back."""
    return _with_inits(step, lambda init: replace(init, stop_ids=init.stop_ids[:1]))


@defect(at="step", caught_by="executor.slot.rows")
def parameters_of_the_next_slot(step: Step) -> Step:
    """Slots that start together get each other's parameters."""
    inits = step.slot_init
    others = [*inits[1:], *inits[:1]]
    pairs = zip(inits, others, strict=True)
    return replace(step, slot_init=tuple(replace(one, sampling=two.sampling) for one, two in pairs))


@defect(at="result", caught_by="executor.slot.rows")
def rows_in_the_order_of_slots(
    result: StepResult, step: Step, late: LateInputs | None
) -> StepResult:
    """Tokens come in the order of slots, not of rows."""
    return replace(result, tokens=result.tokens[np.argsort(step.slots)])


@defect(at="step", caught_by="executor.slot.reused", stateful=True)
def slots_lag_behind() -> Callable[[Step], Step]:
    """A slot that is initialized again samples by its former sequence's parameters."""
    former: dict[int, SamplingParams] = {}

    def started(init: SlotInit) -> SlotInit:
        sampling = former.get(init.slot, init.sampling)
        former[init.slot] = init.sampling
        return replace(init, sampling=sampling)

    return lambda step: _with_inits(step, started)


@defect(at="step", caught_by="executor.slot.reused", stateful=True)
def slots_keep_their_bias() -> Callable[[Step], Step]:
    """A slot adds its next sequence's logit bias to that of the one before."""
    biases: dict[int, dict[int, float]] = {}

    def started(init: SlotInit) -> SlotInit:
        bias = biases.setdefault(init.slot, {})
        bias |= init.sampling.logit_bias
        return replace(init, sampling=replace(init.sampling, logit_bias=dict(bias)))

    return lambda step: _with_inits(step, started)


@defect(at="step", caught_by="executor.slot.resumed")
def resumed_output_is_forgotten(step: Step) -> Step:
    """A sequence that resumes has no output to penalize."""
    return _with_inits(step, lambda init: replace(init, output_ids=init.output_ids[:0]))


@defect(at="step", caught_by="executor.slot.resumed")
def resumed_output_is_prompt(step: Step) -> Step:
    """The output of a sequence that resumes is taken for its prompt."""
    return _with_inits(
        step,
        lambda init: replace(
            init,
            prompt_ids=np.concatenate([init.prompt_ids, init.output_ids]),
            output_ids=init.output_ids[:0],
        ),
    )


@defect(at="step", caught_by="executor.slot.resumed", stateful=True)
def resumed_noise_starts_anew() -> Callable[[Step], Step]:
    """Noise is counted from the first token that the executor itself yields."""
    starts: dict[int, int] = {}

    def submitted(step: Step) -> Step:
        for init in step.slot_init:
            starts[init.slot] = len(init.output_ids)
        shift = np.array([starts[slot] for slot in step.slots.tolist()], np.int32)
        return replace(step, sample_positions=step.sample_positions - shift)

    return submitted


@defect(at="result", caught_by="executor.sampling.definition", stateful=True)
def logprobs_are_after_the_temperature() -> Callable[..., StepResult]:
    """Log-probabilities are of the distribution that a temperature made."""
    heat: dict[int, float] = {}

    def result(found: StepResult, step: Step, late: LateInputs | None) -> StepResult:
        heat.update((i.slot, i.sampling.temperature or 1.0) for i in step.slot_init)
        divisor = np.array([heat[s] for s in step.slots.tolist()], np.float32)[:, None, None]
        scores = found.top_logprobs / divisor
        total = np.log(np.exp(scores).sum(-1, keepdims=True)) if scores.shape[-1] else 0
        return replace(found, top_logprobs=scores - total)

    return result
