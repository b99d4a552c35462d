"""What one step yields: its result's form, and that the company of rows changes nothing."""

import numpy as np
import pytest

from infercore.errors import StepFailed
from infercore.sampling import RowStatus
from infercore.step import Float32, Int32, Step
from infercore_conformance import Feature, Level, check, thorough
from infercore_conformance.fixtures import Numerics, Start
from infercore_conformance.models import VOCAB
from infercore_conformance.running import Running
from infercore_conformance.steps import Row, prompt
from infercore_conformance.tolerances import logprobs_bound

LENGTH = 60  # of a prompt that spans blocks, and the window of the models that have one
FORCED = [11, 7, 140, 3, 90, 28]  # tokens that stand for what was chosen


@check("executor.step.id", "A result bears the id of the step that it is of.")
def test_a_result_bears_its_steps_id(running: Running) -> None:
    """The engine matches results by it; two steps in flight make a mix-up possible."""
    stepper = running.stepper()
    for slot in range(3):
        step = stepper.step([(Row(slot, prompt(5)), 5)])
        assert running.run(step).step_id == step.step_id


@check("executor.step.result", "A result's arrays have the shapes and dtypes of the contract.")
def test_what_a_result_holds(running: Running) -> None:
    """A row that was not asked for a token (a chunk before a prompt's last) yields none."""
    rows = [(Row(0, prompt(30)), 20), (Row(1, prompt(5)), 5)]
    result = running.run(running.stepper().step(rows, logprobs=3))
    assert result.status.tolist() == [RowStatus.NOT_SAMPLED, RowStatus.OK]
    assert result.n_tokens.tolist() == [0, 1]
    for name, dtype, shape in (
        ("tokens", np.int32, (2, 1)),
        ("n_tokens", np.int32, (2,)),
        ("status", np.uint8, (2,)),
        ("logprobs", np.float32, (2, 1)),
        ("top_ids", np.int32, (2, 1, 3)),
        ("top_logprobs", np.float32, (2, 1, 3)),
    ):
        array = getattr(result, name)
        assert isinstance(array, np.ndarray), f"{name} is a {type(array).__name__}, no array"
        assert (array.dtype, array.shape) == (dtype, shape), f"{name}: {array.dtype}{array.shape}"
    assert result.prompt_logprobs is None, "no prompt target was given"
    assert all(seconds >= 0 for seconds in result.seconds.values())


@check("executor.step.logprobs", "Log-probabilities are a distribution, likeliest first.")
def test_logprobs_are_a_distribution(running: Running, numerics: Numerics) -> None:
    """Their exponentials add up to 1, and a greedy row's token is the first of them."""
    rows = [Row(slot, prompt(7 + slot)) for slot in range(3)]
    step = running.stepper().step([(row, len(row.ids)) for row in rows], logprobs=VOCAB)
    result = running.run(step)
    for row in range(3):
        values = result.top_logprobs[row, 0].astype(np.float64)
        assert (np.diff(values) <= 0).all(), "they do not fall"
        assert result.top_ids[row, 0, 0] == result.tokens[row, 0], "the choice is not the likeliest"
        assert np.isclose(result.logprobs[row, 0], values[0], atol=1e-5), "the choice's own differs"
        numerics.record("total_probability_error", abs(np.exp(values).sum() - 1), 1e-4)


@check("executor.step.no_logprobs", "Without log-probabilities asked for, none are computed.")
def test_no_logprobs_are_no_arrays(running: Running) -> None:
    result = running.run(running.stepper().step([(Row(0, prompt(5)), 5)]))
    assert result.top_ids.shape == result.top_logprobs.shape == (1, 1, 0)


@check(
    "executor.step.prompt_logprobs",
    "A prompt token's log-probability is the one that it has when it is generated.",
    level=Level.EXTENDED,
    needs=Feature("prompt_logprobs"),
)
def test_prompt_logprobs(running: Running, numerics: Numerics) -> None:
    """Of the token at `prompt_targets`, given the tokens up to and with the one it stands at."""
    ids = [*prompt(20), *FORCED]
    result = running.run(
        running.stepper().step([(Row(0, ids), len(ids))], targets=True, logprobs=2)
    )
    assert result.prompt_logprobs is not None, "no log-probabilities of the prompt"
    assert result.prompt_top_ids is not None
    assert result.prompt_logprobs.shape == (len(ids),)
    running.executor.reset()
    [expected] = running.forced(running.stepper(), [Row(0, ids[:20])], [FORCED])
    own = expected[np.arange(len(FORCED)), FORCED]
    found = result.prompt_logprobs[19 : 19 + len(FORCED)]
    bound = logprobs_bound(running.config.dtype)
    numerics.record("logprobs_max_abs", float(np.abs(found - own).max()), bound)
    likeliest = expected[: len(FORCED)].max(axis=-1)
    top = result.prompt_top_logprobs
    assert top is not None
    numerics.record("top_max_abs", float(np.abs(top[19:25, 0] - likeliest).max()), bound)


@check("executor.step.chunks", "A prompt in chunks yields what it yields whole.")
@pytest.mark.parametrize("chunk", [1, pytest.param(7, marks=thorough), 16, 17])
def test_a_prompt_in_chunks(
    start: Start, architecture: str, chunk: int, numerics: Numerics
) -> None:
    """Positions, slots and the window are counted from the sequence's start, not the step's."""
    running = start(architecture)
    [whole] = running.forced(running.stepper(), [Row(0, prompt(LENGTH))], [FORCED])
    running.executor.reset()
    [parts] = running.forced(running.stepper(1), [Row(0, prompt(LENGTH))], [FORCED], chunk)
    _alike(running, whole, parts, numerics)


@check("executor.step.decode", "Decoding yields what one prefill over the same tokens yields.")
def test_decode_is_prefill(start: Start, architecture: str, numerics: Numerics) -> None:
    """The two paths through attention, held against each other at every position."""
    running = start(architecture)
    [decoded] = running.forced(running.stepper(), [Row(0, prompt(LENGTH))], [FORCED])
    for count in range(1, len(FORCED) + 1):
        running.executor.reset()
        ids = [*prompt(LENGTH), *FORCED[:count]]
        [[prefilled]] = running.forced(running.stepper(1), [Row(0, ids)], [[]])
        _alike(running, decoded[count], prefilled, numerics)


@check("executor.step.company", "A row's distribution does not depend on the rows beside it.")
def test_rows_do_not_touch_each_other(start: Start, architecture: str, numerics: Numerics) -> None:
    """To the rounding that the batch's shape may change; bits where `batch_invariant` is."""
    running = start(architecture)
    [alone] = running.forced(running.stepper(), [Row(0, prompt(LENGTH))], [FORCED])
    running.executor.reset()
    rows = [Row(slot, prompt(LENGTH, salt=slot - 5)) for slot in (2, 5, 1)]
    many = running.forced(running.stepper(1), rows, [FORCED[::-1], FORCED, [1] * len(FORCED)])
    _alike(running, alone, many[1], numerics)


@check(
    "executor.step.batch_invariant",
    "A row's log-probabilities are the same bits in any company, chunk and block order.",
    level=Level.EXTENDED,
    needs=Feature("batch_invariant"),
)
def test_bits_do_not_depend_on_the_batch(start: Start, architecture: str) -> None:
    """What makes a resumed stream go on exactly where it stood."""
    running = start(architecture)
    [alone] = running.forced(running.stepper(), [Row(0, prompt(LENGTH))], [FORCED])
    running.executor.reset()
    rows = [Row(slot, prompt(LENGTH, salt=slot - 5)) for slot in (2, 5, 1)]
    forced = [FORCED[::-1], FORCED, [1] * len(FORCED)]
    many = running.forced(running.stepper(1), rows, forced, chunk=13)
    assert np.array_equal(alone, many[1]), "the bits differ"


@check("executor.step.ragged", "Rows of different lengths, chunks and decodes share a step.")
def test_a_mixed_step(running: Running, numerics: Numerics) -> None:
    """A row that decodes, one in the middle of its prompt, one that ends it, one that is short."""
    counts = (1, 9, 30, 1)
    rows = [Row(slot, prompt(length)) for slot, length in enumerate((41, 50, 30, 1))]
    stepper = running.stepper()
    running.run(stepper.step([(rows[0], 40), (rows[1], 20)]))
    mixed = stepper.step(list(zip(rows, counts, strict=True)), logprobs=VOCAB)
    result = running.run(mixed)
    assert result.n_tokens.tolist() == [1, 0, 1, 1]
    for row in (0, 2, 3):
        running.executor.reset()
        alone = running.run(
            running.stepper().step([(Row(0, rows[row].ids), len(rows[row].ids))], logprobs=VOCAB)
        )
        difference = abs(result.top_logprobs[row, 0, 0] - alone.top_logprobs[0, 0, 0])
        numerics.record("logprob_max_abs", difference, logprobs_bound(running.config.dtype))


@check("executor.step.arrays_returned", "A step's arrays are the engine's again after its result.")
def test_arrays_are_not_read_after_the_result(running: Running) -> None:
    """The engine fills them for the next step: whoever still reads them reads that one."""
    expected = running.generate(running.stepper(), [Row(0, prompt(9))], 4)
    running.executor.reset()
    stepper, row = running.stepper(), Row(0, prompt(9))
    found: list[int] = []
    while len(found) < 4:
        step = running.padded(stepper.step([(row, len(row.ids) - row.done)]))
        found.append(int(running.run(step).tokens[0, 0]))
        row.ids.append(found[-1])
        _scribble(step)
    assert [found] == expected, "tokens change with what stands in the arrays of steps that ended"


@check("executor.step.result_kept", "A result does not change when later steps run.")
def test_a_result_stays_what_it_is(running: Running) -> None:
    """Its arrays are the engine's own, no views of a buffer that the next step fills."""
    stepper = running.stepper()
    first = running.run(stepper.step([(Row(0, prompt(9)), 9)], logprobs=5))
    kept = [first.tokens.copy(), first.top_ids.copy(), first.top_logprobs.copy()]
    for slot in (1, 2, 3):
        running.run(stepper.step([(Row(slot, prompt(9, salt=slot)), 9)], logprobs=5))
    for before, after in zip(kept, (first.tokens, first.top_ids, first.top_logprobs), strict=True):
        assert np.array_equal(before, after)


@check("executor.step.unknown_extra", "An extra that it does not know is refused, not ignored.")
def test_an_unknown_extra_is_refused(running: Running) -> None:
    """StepFailed that is not retryable and names it; the next step runs as ever."""
    stepper = running.stepper()
    extras = {"no_such_extra": np.zeros(1, np.float32)}
    with pytest.raises(StepFailed, match="no_such_extra") as caught:
        running.run(stepper.step([(Row(0, prompt(3)), 3)], extras=extras))
    assert not caught.value.retryable, "the same step would be tried again"
    assert caught.value.kv_intact, "nothing ran, so the cache is as it was"
    result = running.run(stepper.step([(Row(1, prompt(3)), 3)]))
    assert result.n_tokens.tolist() == [1]


def _alike(running: Running, one: Float32, other: Float32, numerics: Numerics) -> None:
    bound = logprobs_bound(running.config.dtype)
    numerics.record("logprobs_max_abs", float(np.abs(one - other).max()), bound)


def _scribble(step: Step) -> None:
    """Leave in the arrays what is legal for no step."""
    for name in ("token_ids", "positions", "slots", "context_len", "sample_positions"):
        array: Int32 = getattr(step, name)
        array[:] = 1
    step.slot_mapping[:] = 0
    step.block_table[:] = 0
    step.seeds[:] = 99
