"""Late inputs: what the host gives a step's sampling while its forward runs."""

import numpy as np

from infercore.sampling import RowStatus, SamplingParams
from infercore_conformance import AtLeast, Both, Feature, Level, check
from infercore_conformance.models import VOCAB
from infercore_conformance.running import TIMEOUT, Running
from infercore_conformance.steps import Row, late_inputs, prompt

LATE = Feature("late_inputs")
ROWS = 4


def _rows(sampling: SamplingParams | None = None) -> list[Row]:
    chosen = sampling or SamplingParams(temperature=0.0)
    return [Row(slot, prompt(slot + 3), chosen, seed=slot + 1) for slot in range(ROWS)]


@check(
    "executor.late.mask",
    "A masked row yields a token that its mask allows, and other rows are free.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_a_mask_binds_its_row(running: Running) -> None:
    """Masks come for some rows only, in any order: rows int32[M] says whose each is."""
    stepper = running.stepper()
    free = running.run(stepper.step([(row, len(row.ids)) for row in _rows()])).tokens[:, 0]
    running.executor.reset()
    stepper = running.stepper()
    only = {3: [_other(free[3])], 1: [_other(free[1])]}
    handle = running.submit(stepper.step([(r, len(r.ids)) for r in _rows()], late=True))
    handle.sample(late_inputs(ROWS, allow=only))
    tokens = handle.result(TIMEOUT).tokens[:, 0].tolist()
    assert tokens[3] == only[3][0], "row 3 yields a token that its mask forbids"
    assert tokens[1] == only[1][0], "row 1 yields a token that its mask forbids"
    assert [tokens[0], tokens[2]] == [free[0], free[2]], "rows without a mask are bound by one"


@check(
    "executor.late.mask_bits",
    "Bit v of a mask, little end first, is token v; the last token of the vocabulary too.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_every_bit_is_its_token(running: Running) -> None:
    """One token after another, at the ends of words, is all that a row may yield."""
    stepper = running.stepper()
    for slot, token in enumerate((0, 31, 32, 63, 64, VOCAB - 1)):
        handle = running.submit(stepper.step([(Row(slot, prompt(5)), 5)], late=True))
        handle.sample(late_inputs(1, allow={0: [token]}))
        assert handle.result(TIMEOUT).tokens[0, 0] == token


@check(
    "executor.late.mask_sampled",
    "A mask binds rows that are sampled as it binds greedy ones.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_a_mask_binds_sampled_rows(running: Running) -> None:
    """It comes before all filters: top-k and top-p choose among what is allowed."""
    allowed = [5, 50, 150]
    rows = _rows(SamplingParams(temperature=1.5, top_k=2, top_p=0.95))
    handle = running.submit(running.stepper().step([(r, len(r.ids)) for r in rows], late=True))
    handle.sample(late_inputs(ROWS, allow=dict.fromkeys(range(ROWS), allowed)))
    result = handle.result(TIMEOUT)
    assert result.status.tolist() == [RowStatus.OK] * ROWS
    assert set(result.tokens[:, 0].tolist()) <= set(allowed)


@check(
    "executor.late.logprobs",
    "Log-probabilities are those of the model's own distribution, before the mask.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_a_mask_leaves_logprobs_alone(running: Running) -> None:
    """OpenAI's meaning, and what a client compares between constrained and free requests."""
    rows = _rows()
    step = running.stepper().step([(r, len(r.ids)) for r in rows], late=True, logprobs=VOCAB)
    handle = running.submit(step)
    handle.sample(late_inputs(ROWS, allow={0: [77]}))
    result = handle.result(TIMEOUT)
    assert result.tokens[0, 0] == 77
    place = result.top_ids[0, 0].tolist().index(77)
    assert np.isclose(result.logprobs[0, 0], result.top_logprobs[0, 0, place], atol=1e-5)
    assert np.isclose(np.exp(result.top_logprobs[0, 0].astype(np.float64)).sum(), 1, atol=1e-3)


@check(
    "executor.late.nothing_allowed",
    "A mask that allows nothing is a status of its row, and harms no other.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_a_mask_that_allows_nothing(running: Running) -> None:
    rows = _rows()
    handle = running.submit(running.stepper().step([(r, len(r.ids)) for r in rows], late=True))
    handle.sample(late_inputs(ROWS, allow={2: []}))
    ok = RowStatus.OK
    assert handle.result(TIMEOUT).status.tolist() == [ok, ok, RowStatus.NO_TOKEN, ok]


@check(
    "executor.late.drop",
    "A dropped row yields nothing, and counts no token.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_a_dropped_row_yields_nothing(running: Running) -> None:
    """Its sequence ended while the step ran."""
    rows = _rows()
    handle = running.submit(running.stepper().step([(r, len(r.ids)) for r in rows], late=True))
    handle.sample(late_inputs(ROWS, drop=[0, 2]))
    result = handle.result(TIMEOUT)
    dropped, ok = RowStatus.DROPPED, RowStatus.OK
    assert result.status.tolist() == [dropped, ok, dropped, ok]
    assert result.n_tokens.tolist() == [0, 1, 0, 1]


@check(
    "executor.late.nothing",
    "A late step that nothing binds yields what a step that is not late yields.",
    level=Level.EXTENDED,
    needs=LATE,
)
def test_empty_late_inputs_change_nothing(running: Running) -> None:
    rows = [(row, len(row.ids)) for row in _rows()]
    expected = running.run(running.stepper().step(rows)).tokens[:, 0].tolist()
    running.executor.reset()
    rows = [(row, len(row.ids)) for row in _rows()]
    handle = running.submit(running.stepper().step(rows, late=True))
    handle.sample(late_inputs(ROWS))
    assert handle.result(TIMEOUT).tokens[:, 0].tolist() == expected


@check(
    "executor.late.behind",
    "A late step may follow one in flight, and is masked by what is learnt from that.",
    level=Level.EXTENDED,
    needs=Both(LATE, AtLeast("max_in_flight", 2)),
)
def test_a_late_step_follows_one_in_flight(running: Running) -> None:
    """The engine's loop for a grammar: submit N+1, read N, make the mask, sample N+1.

    Its mask forbids what it would yield: the second likeliest shows which token it continues.
    """
    stepper, row = running.stepper(), Row(0, prompt(9))
    expected = running.generate(stepper, [row], 1)[0][0]
    free = running.run(stepper.step([(row, 1)], logprobs=2))
    running.executor.reset()
    stepper, row = running.stepper(), Row(0, prompt(9))
    first = running.submit(stepper.step([(row, 9)]))
    second = running.submit(stepper.step([(row, 1)], follow={0: 0}, late=True))
    assert first.result(TIMEOUT).tokens[0, 0] == expected
    likeliest, runner_up = free.top_ids[0, 0].tolist()
    second.sample(late_inputs(1, allow={0: sorted(set(range(VOCAB)) - {likeliest})}))
    assert second.result(TIMEOUT).tokens[0, 0] == runner_up


def _other(token: int) -> int:
    return (int(token) + 41) % VOCAB
