"""Sampling, held against its definition in `infercore.sampling`, token by token.

The executor's own log-probabilities of the whole vocabulary go into the definition. They are its
logits less a constant, which no stage but the repetition penalty can tell; where rounding puts two
tokens nearer than `CLOSE`, either is right.
"""

from dataclasses import replace

import numpy as np
import pytest

from infercore.sampling import SamplingParams, choose, gumbel, process, scale, survivors
from infercore.step import Float32
from infercore_conformance import check
from infercore_conformance.models import VOCAB
from infercore_conformance.running import Running
from infercore_conformance.steps import GREEDY, Row, prompt

CLOSE = 1e-4  # in units of score + noise, and of a filter's probability mass
STEPS = 12
SAMPLED = {
    "temperature": SamplingParams(temperature=0.8),
    "top_k": SamplingParams(top_k=5),
    "top_p": SamplingParams(top_p=0.7),
    "typical_p": SamplingParams(typical_p=0.6),
    "min_p": SamplingParams(min_p=0.1),
    "all_filters": SamplingParams(temperature=1.3, top_k=40, top_p=0.9, typical_p=0.95, min_p=0.01),
    "logit_bias": SamplingParams(logit_bias={3: 4.0, VOCAB - 1: 5.0, 17: -100.0}),
    "frequency": SamplingParams(temperature=0.0, frequency_penalty=1.5),
    # two tokens come again and again, so that a penalty that grows with their number shows
    "presence": SamplingParams(
        temperature=0.5, presence_penalty=2.0, logit_bias={3: 12.0, VOCAB - 1: 12.0}
    ),
}


@check("executor.sampling.definition", "Tokens are those that the definition of sampling chooses.")
@pytest.mark.parametrize("sampling", SAMPLED.values(), ids=SAMPLED)
def test_sampling_is_its_definition(running: Running, sampling: SamplingParams) -> None:
    """Filters in their order, the noise a function of seed, position and id alone."""
    stepper = running.stepper()
    rows = [Row(slot, prompt(9 + slot), sampling, seed=2**40 + slot) for slot in range(2)]
    for _ in range(STEPS):
        step = stepper.step([(row, len(row.ids) - row.done) for row in rows], logprobs=VOCAB)
        result = running.run(step)
        for number, row in enumerate(rows):
            logprobs = np.empty(VOCAB, np.float32)
            logprobs[result.top_ids[number, 0]] = result.top_logprobs[number, 0]
            token = int(result.tokens[number, 0])
            expected = _defined(logprobs, row)
            assert token in expected, f"position {len(row.ids)}: {token}, defined is {expected}"
            row.ids.append(token)


@check("executor.sampling.repetition", "The repetition penalty counts prompt and output.")
def test_the_repetition_penalty(running: Running) -> None:
    """A huge one makes every token new, for as long as there are tokens never seen."""
    row = Row(0, prompt(40), SamplingParams(temperature=0.0, repetition_penalty=1e6))
    seen = set(row.ids)
    [new] = running.generate(running.stepper(), [row], STEPS)
    logits_have_signs = "a positive logit of an unseen token wins, or a negative one of the seen"
    assert len(set(new)) == STEPS, f"{new} repeats a token: {logits_have_signs}"
    assert not seen & set(new), f"{seen & set(new)} are of the prompt: {logits_have_signs}"


@check("executor.sampling.seed", "The same seed and position give the same token in any slot.")
def test_a_seed_repeats(running: Running) -> None:
    """Noise needs no state, so a request that resumes elsewhere has the same text."""
    sampling = SamplingParams(temperature=1.0)
    [alone] = running.generate(running.stepper(), [Row(0, prompt(9), sampling, seed=5)], STEPS)
    running.executor.reset()
    rows = [Row(slot, prompt(9), sampling, seed=seed) for slot, seed in ((1, 6), (7, 5), (2, 4))]
    others = running.generate(running.stepper(1), rows, STEPS)
    assert others[1] == alone, "one seed, two texts"
    assert alone not in (others[0], others[2]), "three seeds, one text"


@check("executor.sampling.greedy", "Temperature 0 takes no noise, whatever the seed.")
def test_greedy_ignores_the_seed(running: Running) -> None:
    rows = [Row(slot, prompt(9), GREEDY, seed=slot) for slot in range(3)]
    one, two, three = running.generate(running.stepper(), rows, STEPS)
    assert one == two == three


@check("executor.sampling.stop_ids", "Stop ids do not come below the position of min_tokens.")
def test_stop_ids_are_banned_at_first(running: Running) -> None:
    """From that position on they come as the model wants them."""
    [free] = running.generate(running.stepper(), [Row(0, prompt(9))], 2)
    running.executor.reset()
    row = Row(0, prompt(9), stop_ids=tuple(free), min_position=11)
    [held] = running.generate(running.stepper(), [row], 2)
    assert not set(held) & set(free), "a stop id came too early"
    running.executor.reset()
    row = Row(0, prompt(9), stop_ids=tuple(free), min_position=9)
    assert running.generate(running.stepper(), [row], 2) == [free], "a stop id is banned too long"


@check("executor.slot.rows", "Each row is sampled by the parameters of its own slot.")
def test_rows_have_their_own_parameters(running: Running) -> None:
    """They came with the slot's `slot_init`; rows then stand in any order."""
    biased = {
        slot: SamplingParams(temperature=0.0, logit_bias={slot * 9: 1e4}) for slot in (1, 4, 6)
    }
    rows = [Row(slot, prompt(5), sampling) for slot, sampling in biased.items()]
    stepper = running.stepper()
    running.run(stepper.step([(row, 4) for row in rows]))
    for turned in (rows[::-1], rows[1:]):
        for row in turned:
            row.ids.append(1)
        step = stepper.step([(row, 1) for row in turned])
        step.sample[:] = True
        assert running.run(step).tokens[:, 0].tolist() == [row.slot * 9 for row in turned]
        for row in turned:
            row.ids.pop()
            row.done -= 1


@check("executor.slot.reused", "A slot forgets the sequence that had it before.")
def test_a_slot_forgets(running: Running) -> None:
    """Its penalties, bias and stop ids end with it, and so do the counts of its tokens."""
    penalized = SamplingParams(temperature=0.0, frequency_penalty=2.0)
    [expected] = running.generate(running.stepper(), [Row(0, prompt(9), penalized)], STEPS)
    running.executor.reset()
    before = replace(penalized, logit_bias=dict.fromkeys(expected, -50.0))
    stepper = running.stepper()
    running.generate(stepper, [Row(0, prompt(9), before, stop_ids=(1,), min_position=90)], STEPS)
    assert running.generate(stepper, [Row(0, prompt(9), penalized)], STEPS) == [expected]


@check("executor.slot.resumed", "A sequence that resumes goes on as if it had never stopped.")
def test_a_sequence_resumes(running: Running) -> None:
    """`slot_init` brings prompt and output apart: penalties on the output count it all again."""
    sampling = SamplingParams(temperature=0.7, frequency_penalty=1.0, presence_penalty=0.5)
    [whole] = running.generate(running.stepper(), [Row(0, prompt(9), sampling, seed=3)], STEPS)
    running.executor.reset()
    half = STEPS // 2
    row = Row(5, [*prompt(9), *whole[:half]], sampling, seed=3, prompt=9)
    [rest] = running.generate(running.stepper(1), [row], STEPS - half)
    assert rest == whole[half:]


def _defined(logprobs: Float32, row: Row) -> set[int]:
    """The token that the definition chooses, and those that rounding may put in its place."""
    output = row.ids[row.prompt :]
    position, seed = len(row.ids), row.seed
    chosen = {
        choose(
            logprobs,
            replace(row.sampling, top_p=top_p, typical_p=typical_p),
            prompt_ids=row.ids[: row.prompt],
            output_ids=output,
            seed=seed,
            position=position,
        ).token
        for top_p in _near(row.sampling.top_p)
        for typical_p in _near(row.sampling.typical_p)
    }
    scores = process(logprobs, row.sampling, prompt_ids=row.ids[: row.prompt], output_ids=output)
    if not row.sampling.greedy:
        scores = scale(scores, row.sampling.temperature)
        kept = np.sort(survivors(scores, row.sampling))
        noisy = scores[kept] + gumbel(seed, position, kept)
        return chosen | set(kept[noisy > noisy.max() - CLOSE].tolist())
    return chosen | set(np.flatnonzero(scores > scores.max() - CLOSE).tolist())


def _near(p: float) -> tuple[float, ...]:
    return (p,) if p == 1 else (p - CLOSE, p, min(1.0, p + CLOSE))
