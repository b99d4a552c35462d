"""The torch sampler against the definition: same token, status and log-probability, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from infercore import sampling
from infercore.sampling import Choice, RowStatus, SamplingParams, choose, top_logprobs
from infercore.step import LateInputs, SlotInit, Step
from infercore.watermark import Watermark
from infercore.worker.sampler import Sampled, Sampler
from infercore.worker.sampling_ops import HEAD, SMALL_HASH, noise, noise_at, ranked

CPU = torch.device("cpu")
VOCABS = (1, 2, 3, 31, 33, 160, HEAD - 1, HEAD, HEAD + 1, 2000, 5000)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Row:
    """One sequence, and what the definition must be told of it."""

    slot: int
    params: SamplingParams
    seed: int
    prompt: list[int]
    stops: list[int] = field(default_factory=list)
    min_position: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.output)

    def init(self) -> SlotInit:
        prompt, output, stops = (
            np.array(ids, np.int32) for ids in (self.prompt, self.output, self.stops)
        )
        return SlotInit(self.slot, self.params, prompt, output, stops, self.min_position)

    def expected(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> Choice:
        return choose(
            logits,
            self.params,
            prompt_ids=self.prompt,
            output_ids=self.output,
            seed=self.seed,
            position=self.position,
            allowed=allowed,
            banned=self.stops if self.position < self.min_position else (),
        )


def step_of(rows: Sequence[Row], logprobs: Sequence[int] | None = None) -> Step:
    """A decode step; only what the sampler reads has a meaning."""
    count = len(rows)
    ints = np.zeros(count, np.int32)
    return Step(
        step_id=1,
        token_ids=ints,
        token_source=ints - 1,
        positions=ints,
        slot_mapping=ints[None],
        prompt_targets=ints - 1,
        slots=np.array([row.slot for row in rows], np.int32),
        query_start=np.arange(count + 1, dtype=np.int32),
        context_len=ints + 1,
        block_table=ints[None, :, None],
        sample=np.ones(count, np.bool_),
        seeds=np.array([row.seed for row in rows], np.uint64),
        sample_positions=np.array([row.position for row in rows], np.int32),
        adapter=ints,
        num_logprobs=ints if logprobs is None else np.array(logprobs, np.int32),
        max_tokens=ints + 1,
    )


def sample(
    sampler: Sampler, logits: NDArray[np.float32], rows: Sequence[Row], late: Any = None
) -> Sampled:
    every = np.arange(len(rows), dtype=np.int32)
    return sampler.sample(torch.from_numpy(logits), every, step_of(rows), late)


def random_mark(rng: np.random.Generator) -> Watermark:
    key = int(rng.integers(0, 2**64, dtype=np.uint64))
    return Watermark(key, float(rng.choice([0.001, 0.25, 0.5, 0.999])), rng.uniform(0.1, 9))


def random_params(rng: np.random.Generator, vocab: int) -> SamplingParams:
    def maybe(off: float, *values: float) -> Any:
        return off if rng.random() < 0.6 else float(rng.choice(values))

    biased = rng.integers(0, vocab, 3) if rng.random() < 0.3 else ()
    return SamplingParams(
        temperature=maybe(1.0, 0.0, 1e-45, 1e-3, 0.7, 5.0, 1e20),
        top_k=int(maybe(0, 1, 2, 7, 40, 1500)),
        top_p=maybe(1.0, 1e-6, 0.3, 0.5, 0.9, 0.999),
        typical_p=maybe(1.0, 1e-6, 0.2, 0.5, 0.95),
        min_p=maybe(0.0, 1e-4, 0.05, 0.5, 1.0),
        repetition_penalty=maybe(1.0, 0.5, 1.3, 10.0),
        frequency_penalty=maybe(0.0, -2.0, -0.1, 0.4, 2.0),
        presence_penalty=maybe(0.0, -1.5, 0.3, 2.0),
        logit_bias={int(t): float(rng.choice([-100, -1.5, 2.0, -np.inf])) for t in biased},
        watermark=random_mark(rng) if rng.random() < 0.3 else None,
    )


def random_row(rng: np.random.Generator, slot: int, vocab: int) -> Row:
    return Row(
        slot=slot,
        params=random_params(rng, vocab),
        seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
        prompt=rng.integers(0, vocab, rng.integers(1, 20)).tolist(),
        stops=np.unique(rng.integers(0, vocab, rng.integers(0, 4))).tolist(),
        min_position=int(rng.integers(0, 24)),
        output=rng.integers(0, vocab, rng.integers(0, 5)).tolist(),
    )


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> NDArray[np.float32]:
    """Rows of different character, some of which no model should give."""
    logits = rng.standard_normal((rows, vocab)).astype(np.float32)
    for i, row in enumerate(logits):
        match rng.integers(9):
            case 0:
                row[:] = np.round(row)  # ties
            case 1:
                row[:] = 0
            case 2:
                logits[i] *= 30  # one token has nearly all the mass
            case 3:
                logits[i] *= 1e-3
            case 4:
                row[rng.random(vocab) < 0.5] = -np.inf
            case 5:
                row[rng.integers(vocab)] = rng.choice([np.nan, np.inf, -np.inf])
            case _:
                logits[i] *= 4
    return logits


def random_late(rng: np.random.Generator, rows: int, vocab: int) -> LateInputs | None:
    if rng.random() < 0.4:
        return None
    masked = np.flatnonzero(rng.random(rows) < 0.5).astype(np.int32)
    bits = rng.random((len(masked), -(-vocab // 32) * 32)) < rng.choice([0.02, 0.5, 1.0])
    words = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    return LateInputs(masked, words, rng.random(rows) < 0.15)


def allowed_by(late: LateInputs | None, row: int, vocab: int) -> NDArray[np.bool_] | None:
    if late is None or row not in late.rows:
        return None
    words = late.bitmask[list(late.rows).index(row)]
    bits = [bool(words[v // 32] >> (v % 32) & 1) for v in range(vocab)]
    return np.array(bits)


@pytest.mark.parametrize("vocab", VOCABS)
def test_tokens_status_and_logprobs_equal_the_definition(vocab: int) -> None:
    """Random batches whose rows leave and are replaced while histories grow."""
    rng = np.random.default_rng(vocab)
    sampler = Sampler(vocab, 8, CPU)
    for _ in range(10 if vocab < 1000 else 4):
        slots = rng.permutation(8)[: rng.integers(1, 8)]
        rows = [random_row(rng, int(slot), vocab) for slot in slots]
        sampler.init_slots([row.init() for row in rows])
        for _ in range(4):
            logits = random_logits(rng, len(rows), vocab)
            late = random_late(rng, len(rows), vocab)
            found = sample(sampler, logits.copy(), rows, late)
            for i, row in enumerate(rows):
                check_row(row, logits[i], found, i, late, vocab)


def check_row(
    row: Row,
    logits: NDArray[np.float32],
    found: Sampled,
    i: int,
    late: LateInputs | None,
    vocab: int,
) -> None:
    expected = row.expected(logits, allowed_by(late, i, vocab))
    if late is not None and late.drop[i]:
        expected = Choice(0, 0.0, RowStatus.DROPPED)
    assert (int(found.tokens[i]), int(found.status[i])) == (expected.token, expected.status), row
    assert found.report is not None
    assert found.report.rows.tolist() == list(range(len(found.tokens)))
    logprob = float(found.report.logprobs[i])
    assert logprob == pytest.approx(expected.logprob, rel=1e-6, abs=2e-6)
    if expected.status is RowStatus.OK:
        row.output.append(expected.token)


def test_the_logits_are_not_written_to() -> None:
    rng = np.random.default_rng(0)
    rows = [random_row(rng, slot, 50) for slot in range(6)]
    sampler = Sampler(50, 6, CPU)
    sampler.init_slots([row.init() for row in rows])
    logits = rng.standard_normal((6, 50)).astype(np.float32)
    kept = logits.copy()
    sample(sampler, logits, rows)
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("vocab", [7, 3000])
def test_a_row_does_not_depend_on_its_company(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = [random_row(rng, slot, vocab) for slot in range(12)]
    logits = random_logits(rng, 12, vocab)

    def run(order: Sequence[int]) -> dict[int, tuple[int, int]]:
        sampler = Sampler(vocab, 12, CPU)
        sampler.init_slots([rows[i].init() for i in order])
        found = sample(sampler, logits[list(order)], [rows[i] for i in order])
        pairs = zip(found.tokens.tolist(), found.status.tolist(), strict=True)
        return dict(zip(order, pairs, strict=True))

    together = run(range(12))
    assert run(range(11, -1, -1)) == together
    for row in range(12):
        assert run([row]) == {row: together[row]}


def test_only_the_steps_named_rows_are_sampled() -> None:
    """A prefill chunk's row has no logits, and the others keep their own seeds."""
    rng = np.random.default_rng(3)
    rows = [random_row(rng, slot, 40) for slot in range(4)]
    sampler = Sampler(40, 4, CPU)
    sampler.init_slots([row.init() for row in rows])
    logits = rng.standard_normal((2, 40)).astype(np.float32)
    some = np.array([1, 3], np.int32)
    found = sampler.sample(torch.from_numpy(logits), some, step_of(rows), None)
    for i, row in enumerate(some):
        assert int(found.tokens[i]) == rows[row].expected(logits[i], None).token


def test_what_is_not_ok_is_not_counted_as_output() -> None:
    params = SamplingParams(temperature=0.0, frequency_penalty=2.0)
    row = Row(0, params, 0, [1])
    sampler = Sampler(4, 1, CPU)
    sampler.init_slots([row.init()])
    logits = np.array([[3, 2.5, 0, 0]], np.float32)
    nothing: Any = np.zeros((0, 1), np.uint32)
    drop = LateInputs(np.zeros(0, np.int32), nothing, np.ones(1, np.bool_))
    assert int(sample(sampler, logits, [row], drop).status[0]) == RowStatus.DROPPED
    assert [int(sample(sampler, logits, [row]).tokens[0]) for _ in range(3)] == [0, 1, 0]


def test_a_slots_next_sequence_starts_afresh() -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=2.0, logit_bias={2: 4.0})
    logits = np.array([[3, 2.5, 0]], np.float32)
    sampler = Sampler(3, 2, CPU)
    sampler.init_slots([Row(0, params, 0, [1]).init()])
    assert int(sample(sampler, logits, [Row(0, params, 0, [1])]).tokens[0]) == 2
    plain = Row(0, SamplingParams(temperature=0.0), 0, [1])
    sampler.init_slots([plain.init()])
    assert int(sample(sampler, logits, [plain]).tokens[0]) == 0
    sampler.reset()
    sampler.init_slots([Row(1, params, 0, [1], output=[2, 2]).init()])
    assert int(sample(sampler, logits, [Row(1, params, 0, [1])]).tokens[0]) == 0


def test_a_slot_that_was_never_initialised_is_an_error() -> None:
    sampler = Sampler(3, 2, CPU)
    sampler.init_slots([Row(0, SamplingParams(top_k=2), 0, [1]).init()])
    sampler.reset()
    with pytest.raises(AssertionError, match="slot 0"):
        sampler._init(0)


def test_each_row_gets_the_logprobs_that_it_asked_for() -> None:
    rng = np.random.default_rng(1)
    rows = [Row(slot, SamplingParams(), slot, [1]) for slot in range(4)]
    sampler = Sampler(30, 4, CPU)
    sampler.init_slots([row.init() for row in rows])
    logits = np.round(rng.standard_normal((4, 30)) * 2).astype(np.float32)
    step = step_of(rows, [-1, 0, 3, 5])
    found = sampler.sample(torch.from_numpy(logits), np.arange(4, dtype=np.int32), step, None)
    report = found.report
    assert report is not None
    assert report.top_ids.shape == (3, 5)
    assert report.rows.tolist() == [1, 2, 3]
    for at, (i, n) in enumerate(((1, 0), (2, 3), (3, 5))):
        ids, logprobs = top_logprobs(logits[i], n)
        assert report.top_ids[at, :n].tolist() == ids.tolist()
        np.testing.assert_allclose(report.top_logprobs[at, :n], logprobs, rtol=1e-6, atol=1e-6)
        assert float(report.logprobs[at]) == pytest.approx(
            rows[i].expected(logits[i], None).logprob, abs=1e-6
        )
    silent = sampler.sample(
        torch.from_numpy(logits), np.arange(4, dtype=np.int32), step_of(rows, [-1] * 4), None
    )
    assert silent.report is None


def test_prompt_logprobs_are_those_of_the_targets() -> None:
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((5, 3000)) * 3).astype(np.float32)
    targets = rng.integers(0, 3000, 5)
    sampler = Sampler(3000, 1, CPU)
    for n in (0, 4):
        chosen, ids, top = sampler.prompt_logprobs(
            torch.from_numpy(logits), torch.from_numpy(targets), n
        )
        for i in range(5):
            expected_ids, expected = top_logprobs(logits[i], n)
            own = sampling.log_softmax(logits[i])[targets[i]]
            assert float(chosen[i]) == pytest.approx(float(own), abs=3e-6)
            assert ids[i].tolist() == expected_ids.tolist()
            np.testing.assert_allclose(top[i], expected, atol=3e-6)


@pytest.mark.parametrize("vocab", [1, 2, 33, 2 * SMALL_HASH + 1])
def test_noise_equals_the_definition_bit_for_bit_but_for_its_logarithms(vocab: int) -> None:
    """Both ways to hash: NumPy's for few words, torch's for many."""
    seeds = np.array([0, 1, 2**32, 2**64 - 1], np.uint64)
    positions = np.array([0, 5, 2**31 - 1, 7], np.int32)
    expected = sampling.gumbel(seeds[:, None], positions[:, None], np.arange(vocab))
    np.testing.assert_allclose(
        noise(seeds, positions, vocab, CPU), expected, rtol=1e-13, atol=1e-15
    )
    ids = np.random.default_rng(0).integers(0, 2**20, (4, vocab))
    there = noise_at(seeds, positions, torch.from_numpy(ids))
    expected = sampling.gumbel(seeds[:, None], positions[:, None], ids)
    np.testing.assert_allclose(there, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("width", [1, 3, 50])
def test_ranking_breaks_ties_by_lowest_id(width: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (4, 50)).astype(np.float32))
    top, ids = ranked(scores, width)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :width]
    assert ids.tolist() == expected.tolist()
    assert torch.equal(top, scores.gather(1, ids))
