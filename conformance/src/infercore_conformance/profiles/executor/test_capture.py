"""Captured steps: what warm-up captured or compiled is replayed, on what each step holds."""

from statistics import median

import numpy as np

from infercore.sampling import SamplingParams
from infercore_conformance import Feature, Level, check
from infercore_conformance.fixtures import Models, Numerics, Start
from infercore_conformance.reference import Reference
from infercore_conformance.running import BLOCKS, Running, open_model
from infercore_conformance.steps import Row, Stepper, prompt
from infercore_conformance.tolerances import logprobs_bound

CAPTURE = Feature("graph_capture")
LENGTHS = (9, 60, 23)  # prompts, decodes and both in one step take other shapes
FORCED = [11, 7, 140]
STEPS = 4  # of each shape


@check(
    "executor.capture.inputs",
    "A step of a warm shape is computed from its own inputs, and not from an earlier one's.",
    level=Level.EXTENDED,
    needs=CAPTURE,
)
def test_a_replay_has_its_own_inputs(start: Start, models: Models, numerics: Numerics) -> None:
    """Again and again in the same shapes, with other tokens, positions, blocks and slots. Whatever
    stood in a Python number when the graph was captured stays what it was.
    """
    running = start()
    reference = Reference(*open_model(models()))
    stepper = running.stepper()
    for number, length in enumerate(2 * LENGTHS):
        row = Row(number % running.config.max_num_seqs, prompt(length, salt=number))
        _hold(running, stepper, row, reference, numerics)
        stepper.release(row)


@check(
    "executor.capture.cache",
    "A warm shape's steps use the cache that was allocated last, and work after a reset.",
    level=Level.EXTENDED,
    needs=CAPTURE,
)
def test_a_replay_finds_the_cache(start: Start, models: Models, numerics: Numerics) -> None:
    """A graph holds addresses: of a cache that is gone, if nobody captures it again."""
    running = start()
    reference = Reference(*open_model(models()))
    for number, blocks in enumerate((BLOCKS, 2 * BLOCKS, BLOCKS)):
        running.executor.allocate_kv({group.name: blocks for group in running.groups})
        running.executor.reset()
        row = Row(0, prompt(LENGTHS[number], salt=number))
        _hold(running, Stepper(running.groups, blocks), row, reference, numerics)


@check(
    "executor.capture.once",
    "Behind warm-up no step of a warm shape is captured or compiled.",
    level=Level.EXTENDED,
    needs=CAPTURE,
)
def test_nothing_is_captured_later(running: Running, numerics: Numerics) -> None:
    """The step's `seconds` would tell it as "capture". What warms up in traffic, for seconds each,
    is what users wait for; the report shows how the first steps compare with later ones.
    """
    stepper, took = running.stepper(), list[float]()
    sampling = SamplingParams(temperature=0.8, top_p=0.9, frequency_penalty=0.5)
    for number in range(STEPS):
        for rows in (1, running.config.max_num_seqs):
            prompts = [Row(slot, prompt(3 + number), sampling) for slot in range(rows)]
            for count in (3 + number, 1):
                step = stepper.step([(row, count) for row in prompts])
                result = running.run(step)
                captured = result.seconds.get("capture", 0.0)
                assert not captured, f"a step of a warm shape was captured, in {captured:.3g} s"
                took.append(sum(result.seconds.values()))
                for row, token in zip(prompts, result.tokens[:, 0].tolist(), strict=True):
                    row.ids.append(token)
            for row in prompts:
                stepper.release(row)
    half = len(took) // 2
    numerics.record("slowest_to_later", max(took[:half]) / (median(took[half:]) or 1.0))


def _hold(
    running: Running, stepper: Stepper, row: Row, reference: Reference, numerics: Numerics
) -> None:
    """Against the model by definition, at the end of the row's prompt and behind each token."""
    expected = reference.logprobs([*row.ids, *FORCED])[len(row.ids) - 1 :]
    [found] = running.forced(stepper, [row], [FORCED])
    difference = float(np.abs(found - expected).max())
    numerics.record("logprobs_max_abs", difference, logprobs_bound(running.config.dtype))
