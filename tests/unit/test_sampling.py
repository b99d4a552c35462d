"""The definition of sampling, held against published vectors, many draws and plain arithmetic."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from infercore import sampling
from infercore.errors import InvalidRequest
from infercore.sampling import MAX_SEED, RowStatus, SamplingParams, choose, gumbel, threefry2x32

Float32 = NDArray[np.float32]
DRAWS = 1_000_000
OFF = SamplingParams()
LOGITS = np.array([2.0, 1.5, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -9.0], np.float32)


def f32(*values: float) -> Float32:
    return np.array(values, np.float32)


def greedy(**settings: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, **settings)


# --- noise ---------------------------------------------------------------------------------------

# Random123's known answers (Salmon et al. 2011), threefry2x32 with 20 rounds: counter, key, words
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),  # digits of π
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_the_words_equal_published_vectors(
    counter: tuple[int, int], key: tuple[int, int], words: tuple[int, int]
) -> None:
    found = threefry2x32(key, counter)
    assert tuple(int(word) for word in found) == words
    columns = [np.full(5, word, np.uint32) for word in counter]
    for column, word in zip(threefry2x32(key, (columns[0], columns[1])), words, strict=True):
        assert column.tolist() == [word] * 5


def noise_of(word: int) -> float:
    """The formula for one 32-bit word, in Python's own arithmetic."""
    v = min(float((np.float32(word) + np.float32(0.5)) * np.float32(2**-32)), 1 - 2**-24)
    return -math.log(-math.log1p(-v))


@given(st.integers(0, MAX_SEED), st.integers(0, 2**31 - 1), st.integers(0, 2**20))
def test_the_noise_follows_its_formula(seed: int, position: int, token: int) -> None:
    words = threefry2x32((seed % 2**32, seed >> 32), (position, token >> 1))
    assert float(gumbel(seed, position, token)) == pytest.approx(noise_of(int(words[token & 1])))


def test_the_noise_is_finite_at_both_ends() -> None:
    assert math.isfinite(noise_of(0))
    assert math.isfinite(noise_of(2**32 - 1))


def test_all_64_bits_of_a_seed_count() -> None:
    ids = np.arange(64)
    rows = [gumbel(1 << bit, 5, ids) for bit in range(64)] + [gumbel(0, 5, ids)]
    assert len({row.tobytes() for row in rows}) == 65


def test_noise_is_gumbels_and_its_neighbours_are_independent() -> None:
    noise = gumbel(7, np.arange(4000)[:, None], np.arange(50))
    assert stats.kstest(noise.ravel(), "gumbel_r").pvalue > 1e-3
    for other in (gumbel(8, np.arange(4000)[:, None], np.arange(50)), noise[1:], noise[:, 1:]):
        here = noise[: other.shape[0], : other.shape[1]]
        assert abs(np.corrcoef(here.ravel(), other.ravel())[0, 1]) < 0.01


# --- the distribution of a million draws ---------------------------------------------------------


def prefix(order: list[int], weights: dict[int, float], p: float) -> list[int]:
    """The shortest prefix of `order` that holds the share p of its weight."""
    kept, mass, total = [], 0.0, math.fsum(weights[i] for i in order)
    for i in order:
        kept.append(i)
        mass += weights[i]
        if mass >= p * total:
            break
    return kept


def intended(logits: Float32, params: SamplingParams) -> dict[int, float]:
    """{token: probability}, one filter after the other, in the papers' own terms."""
    weights = {i: math.exp(float(x) / params.temperature) for i, x in enumerate(logits)}
    kept = sorted(weights, key=lambda i: (-weights[i], i))
    if params.top_k > 0:
        kept = kept[: params.top_k]
    kept = prefix(kept, weights, params.top_p)
    if params.typical_p < 1:
        total = math.fsum(weights[i] for i in kept)
        surprise = {i: -math.log(weights[i] / total) for i in kept}
        entropy = math.fsum(weights[i] / total * surprise[i] for i in kept)
        by_distance = sorted(kept, key=lambda i: abs(surprise[i] - entropy))
        typical = set(prefix(by_distance, weights, params.typical_p))
        kept = [i for i in kept if i in typical]
    kept = [i for i in kept if weights[i] >= params.min_p * max(weights[j] for j in kept)]
    total = math.fsum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


def draws(logits: Float32, params: SamplingParams) -> NDArray[np.int64]:
    """A million choices, over positions and seeds, as `choose` makes them."""
    scores = sampling.scale(logits, params.temperature)
    ids = np.sort(sampling.survivors(scores, params))
    found = []
    for seed in range(10):
        positions = np.arange(DRAWS // 10)[:, None]
        noisy = scores[ids] + gumbel(seed * 0x123456789, positions, ids)
        found.append(ids[noisy.argmax(1)])
    for position in range(20):  # so that this test draws what it says
        one = choose(logits, params, seed=0x123456789, position=position)
        assert one.token == found[1][position]
    return np.concatenate(found)


FILTERS = {
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8},
    "typical-p": {"typical_p": 0.5},
    "min-p": {"min_p": 0.15},
    "all": {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "typical_p": 0.9, "min_p": 0.1},
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_million_draws_match_the_distribution(name: str) -> None:
    params = SamplingParams(**FILTERS[name])  # type: ignore[arg-type]
    expected = intended(LOGITS, params)
    assert 1 < len(expected) < len(LOGITS) or name == "temperature"
    counts = np.bincount(draws(LOGITS, params), minlength=len(LOGITS))
    assert set(np.flatnonzero(counts)) <= set(expected)
    observed = [counts[i] for i in expected]
    assert stats.chisquare(observed, [DRAWS * p for p in expected.values()]).pvalue > 1e-3


# --- filters -------------------------------------------------------------------------------------


def survivors(logits: Float32, **settings: Any) -> list[int]:
    params = SamplingParams(**settings)
    ids = sampling.survivors(sampling.scale(logits, params.temperature), params)
    return [int(i) for i in ids]


def test_ties_are_kept_by_lowest_id() -> None:
    equal = np.zeros(10, np.float32)
    assert survivors(equal, top_k=3) == [0, 1, 2]
    assert survivors(equal, top_p=0.5) == [0, 1, 2, 3, 4]  # exactly half is enough
    assert survivors(equal, top_p=0.51) == [0, 1, 2, 3, 4, 5]
    assert survivors(equal, typical_p=0.2) == [0, 1]
    assert survivors(equal, min_p=1.0) == list(range(10))
    assert choose(equal, greedy(), seed=0, position=0).token == 0
    assert choose(f32(1, 3, 3, 2), greedy(), seed=0, position=0).token == 1


def test_filters_always_leave_the_likeliest() -> None:
    assert survivors(LOGITS, top_p=1e-9) == [0]
    assert survivors(LOGITS, min_p=1.0) == [0]
    assert survivors(LOGITS, top_k=1) == [0]
    assert len(survivors(LOGITS, typical_p=1e-9)) == 1


def test_filters_renormalize_one_after_another() -> None:
    logits = np.log(f32(0.5, 0.25, 0.15, 0.1))
    assert survivors(logits, top_p=0.7) == [0, 1]
    # of the two best, the first holds two thirds
    assert survivors(logits, top_k=2, top_p=0.66) == [0]
    assert survivors(logits, top_k=2, top_p=0.68) == [0, 1]


def test_filters_that_are_off_keep_all_that_is_possible() -> None:
    logits = f32(1, -np.inf, 3, 2)
    assert survivors(logits) == [2, 3, 0]
    assert survivors(logits, top_k=-1) == [2, 3, 0]
    assert survivors(logits, top_k=100) == [2, 3, 0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e30])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    counts = np.bincount([choose(LOGITS, params, seed=1, position=i).token for i in range(300)])
    assert (counts[0] == 300) == (temperature < 1)


# --- the stages before temperature ---------------------------------------------------------------


def test_repetition_divides_what_is_positive_and_multiplies_the_rest() -> None:
    found = sampling.penalize_repetition(f32(3, -3, 3, 0), [0, 1, 1, 3], 1.5)
    assert found.tolist() == [2, -4.5, 3, 0]


def test_frequency_counts_and_presence_does_not() -> None:
    found = sampling.penalize_frequency(f32(1, 1, 1), [0, 0, 2], 0.5, 0.25)
    assert found.tolist() == [-0.25, 1, 0.25]


def test_repetition_sees_prompt_and_output_the_others_the_output_only() -> None:
    params = greedy(repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=1.0)
    found = sampling.process(f32(8, 8, 8), params, prompt_ids=[0, 0], output_ids=[1, 1])
    assert found.tolist() == [4, 8 / 2 - 2 - 1, 8]


def test_the_order_is_masks_bias_repetition_frequency() -> None:
    params = greedy(logit_bias={0: -5.0, 1: 9.0}, repetition_penalty=2.0, frequency_penalty=1.0)
    found = sampling.process(f32(4, 4, 4), params, output_ids=[0, 1], banned=[1])
    # the bias turned the first negative before repetition looked at its sign
    assert found.tolist() == [-3, -np.inf, 4]


def test_masks_and_bans_hold_whatever_is_added() -> None:
    allowed = np.array([False, True, True, False])
    params = greedy(logit_bias={0: 100.0, 1: 50.0})
    chosen = choose(f32(9, 1, 2, 3), params, seed=0, position=0, allowed=allowed, banned=[1])
    assert chosen.token == 2
    for position in range(50):
        drawn = choose(LOGITS, OFF, seed=3, position=position, banned=[0, 1, 2])
        assert drawn.token > 2


def test_temperature_0_is_the_argmax_after_the_penalties() -> None:
    params = greedy(repetition_penalty=3.0, top_k=1)
    assert choose(f32(3, 2), params, prompt_ids=[0], seed=5, position=9).token == 1


def test_scale_puts_the_likeliest_at_0() -> None:
    assert sampling.scale(f32(1, 5, -np.inf), 2.0).tolist() == [-2, 0, -np.inf]


# --- what is not a choice ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [OFF, greedy()])
def test_logits_that_are_not_finite_give_no_token(bad: float, params: SamplingParams) -> None:
    for allowed in (None, np.array([True, False, True])):
        chosen = choose(f32(0, bad, 1), params, seed=0, position=0, allowed=allowed)
        assert chosen == sampling.Choice(0, 0.0, RowStatus.NOT_FINITE)


def test_penalties_that_overflow_give_no_token() -> None:
    params = SamplingParams(repetition_penalty=1e-45, logit_bias={0: 1e38})
    chosen = choose(f32(1, 0), params, prompt_ids=[0], seed=0, position=0)
    assert chosen.status is RowStatus.NOT_FINITE


@pytest.mark.parametrize("params", [OFF, greedy(), SamplingParams(top_p=0.5)])
def test_a_row_without_a_possible_token_says_so(params: SamplingParams) -> None:
    nothing = np.zeros(3, np.bool_)
    chosen = choose(f32(1, 2, 3), params, seed=0, position=0, allowed=nothing)
    assert chosen == sampling.Choice(0, 0.0, RowStatus.NO_TOKEN)
    empty = f32(-np.inf, -np.inf)
    assert choose(empty, params, seed=0, position=0).status is RowStatus.NO_TOKEN


def test_one_possible_token_is_chosen_whatever_the_noise() -> None:
    logits = np.full(9, -np.inf, np.float32)
    logits[4] = -80
    for seed in range(20):
        assert choose(logits, OFF, seed=seed, position=seed) == sampling.Choice(
            4, 0.0, RowStatus.OK
        )


# --- log-probabilities ---------------------------------------------------------------------------


def test_logprobs_are_the_models_own_before_any_stage() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias={5: 50.0})
    chosen = choose(LOGITS, params, seed=0, position=0)
    assert chosen.token == 5
    total = math.log(math.fsum(math.exp(float(x)) for x in LOGITS))
    assert chosen.logprob == pytest.approx(float(LOGITS[5]) - total, rel=1e-6)


def test_top_logprobs_are_sorted_with_ties_by_lowest_id() -> None:
    ids, logprobs = sampling.top_logprobs(LOGITS, 4)
    assert ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(logprobs, np.log(np.exp(LOGITS) / np.exp(LOGITS).sum())[:4], 1e-5)
    assert sampling.log_softmax(f32(1000, 0)).tolist() == [0, -1000]


# --- parameters ----------------------------------------------------------------------------------

WRONG: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", 1e39),
    ("temperature", "1"),
    ("temperature", None),
    ("temperature", True),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("typical_p", 0.0),
    ("typical_p", 1.5),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", math.inf),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("presence_penalty", math.nan),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 1.0),
    ("max_tokens", 0),
    ("min_tokens", -1),
    ("logprobs", -1),
    ("prompt_logprobs", -1),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", {1: math.inf}),
    ("logit_bias", {1: 1e39}),
    ("logit_bias", {"1": 1.0}),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", (1.0,)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_parameter_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_the_ends_of_the_ranges_are_legal() -> None:
    SamplingParams(
        temperature=0, top_k=-1, top_p=1, typical_p=1, min_p=1, seed=MAX_SEED, max_tokens=None
    )
    SamplingParams(frequency_penalty=-2, presence_penalty=2, min_p=0, seed=0, logprobs=0)
    numpys: dict[str, Any] = {"top_k": np.int64(4), "top_p": np.float32(0.5)}
    SamplingParams(logit_bias={3: -math.inf}, **numpys)


def test_stops_become_tuples() -> None:
    assert SamplingParams(stop="\n").stop == ("\n",)  # type: ignore[arg-type]
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[7])  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (7,))
