"""The watermark's definition: its green lists, what they do to a choice, and its detector."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infercore.errors import InvalidRequest
from infercore.hub import demo_path
from infercore.sampling import MAX_SEED, SamplingParams, choose, process, threefry2x32
from infercore.text.tokenizer import Tokenizer
from infercore.watermark import (
    CONTEXT_BIT,
    PUBLIC_KEY,
    Watermark,
    detect,
    key_of,
    lots,
    pairs,
    upper_tail,
)

KEYS = st.integers(0, MAX_SEED)
IDS = st.integers(0, 2**31 - 1)
TEXTS, TEXT = 200, 400  # unmarked texts, tokens of each


def held_out() -> NDArray[np.int64]:
    """Ids of a text that no model wrote."""
    text = (demo_path() / "heldout.txt").read_text(encoding="utf-8")
    return np.array(Tokenizer(demo_path()).encode(text), np.int64)


def unmarked() -> Iterator[NDArray[np.int64]]:
    """Texts that begin at different places of the held-out one, and overlap if they must."""
    ids = held_out()
    for start in np.linspace(0, len(ids) - TEXT, TEXTS).astype(int):
        yield ids[start : start + TEXT]


def small_p_values(ids: NDArray[np.int64], keys: NDArray[np.uint64], level: float) -> int:
    """Under how many keys a text's p-value is below `level`: `detect`, for all keys at once."""
    contexts, followers = pairs(ids.tolist())
    green = (lots(keys[:, None], contexts, followers) < Watermark().threshold).sum(axis=1)
    return int((upper_tail(len(followers), 0.5)[green] < level).sum())


# --- the green list -----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(KEYS, IDS, IDS)
def test_a_lot_is_the_half_word_that_the_definition_names(
    key: int, context: int, token: int
) -> None:
    words = threefry2x32((key % 2**32, key >> 32), (CONTEXT_BIT + context, token // 4))
    word = int(words[token % 4 // 2])
    expected = word % 2**16 if token % 2 == 0 else word >> 16
    assert int(lots(key, context, token)) == expected


def test_known_lots() -> None:
    """They must never change: marked texts are found by them."""
    assert (key_of("a secret"), PUBLIC_KEY) == (0x8FB0566DDE1578D2, 0x98A369A0FBFC9BA7)
    assert lots(7, 3, np.arange(6)).tolist() == [42285, 1978, 57515, 43501, 48315, 18800]
    assert int(lots(MAX_SEED, 2**31 - 1, 2**31 - 1)) == 23475


@pytest.mark.parametrize("vocab", [1, 2, 3, 4, 5, 127, 4096])
@pytest.mark.parametrize("gamma", [0.001, 0.25, 0.5, 0.999])
def test_a_list_is_what_each_token_says(vocab: int, gamma: float) -> None:
    mark = Watermark(MAX_SEED, gamma)
    for context in (0, 1, 2**31 - 1):
        green = mark.green_list(context, vocab)
        assert green.tolist() == mark.is_green(context, np.arange(vocab)).tolist()


def test_lists_have_their_share_and_depend_on_key_and_context() -> None:
    for gamma in (0.1, 0.25, 0.5, 0.75):
        size = 2**17
        share = Watermark(1, gamma).green_list(5, size).mean()
        assert abs(share - gamma) < 5 * math.sqrt(gamma * (1 - gamma) / size)
    lists = [Watermark(key).green_list(context, size) for key in (1, 2) for context in (5, 6)]
    for one, other in itertools.combinations(lists, 2):
        assert abs((one == other).mean() - 0.5) < 5 * math.sqrt(0.25 / size)


# --- the choice ---------------------------------------------------------------------------------


def test_delta_comes_between_the_bias_and_the_penalties() -> None:
    logits = np.array([1.0, -1.0, 0.5, -0.25, 2.0, -3.0], np.float32)
    mark = Watermark(11, 0.5, 1.5)
    params = SamplingParams(logit_bias={0: 0.75, 5: -4.0}, repetition_penalty=1.7, watermark=mark)
    biased = logits + np.array([0.75, 0, 0, 0, 0, -4.0], np.float32)
    marked = np.where(mark.green_list(4, 6), biased + np.float32(1.5), biased)
    penalty = np.float32(1.7)
    expected = np.where(marked > 0, marked / penalty, marked * penalty)
    expected[[0, 3]] = marked[[0, 3]]
    found = process(logits, params, prompt_ids=[1, 2, 5], output_ids=[4])
    np.testing.assert_array_equal(found, expected)


def test_the_first_token_comes_after_the_prompt() -> None:
    mark = Watermark(3, 0.5, 100.0)
    params = SamplingParams(temperature=0.0, watermark=mark)
    for context in range(20):
        first = choose(
            np.zeros(64, np.float32), params, prompt_ids=[9, context], seed=0, position=2
        )
        assert first.token == int(np.argmax(mark.green_list(context, 64)))
        assert first.logprob == pytest.approx(-math.log(64)), "it is the model's own"


# --- the detector -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [0, 1, 7, 60])
def test_the_tail_is_that_of_the_binomial_distribution(count: int, share: float) -> None:
    terms = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]
    expected = [math.fsum(terms[k:]) for k in range(count + 1)]
    np.testing.assert_allclose(upper_tail(count, share), expected, rtol=1e-12)


def test_the_tail_of_many_draws_is_precise() -> None:
    tail = upper_tail(100_000, 0.5)
    assert tail[0] == pytest.approx(1.0, rel=1e-8)
    assert tail[50_000] == pytest.approx(0.5 + math.sqrt(1 / (2 * math.pi * 1e5)), rel=1e-6)
    assert tail[100_000] == 0.0


@settings(max_examples=50, deadline=None)
@given(KEYS, st.lists(st.integers(0, 5), max_size=60), st.sampled_from([0.1, 0.5, 0.8]))
def test_each_pair_is_judged_once(key: int, ids: list[int], gamma: float) -> None:
    mark = Watermark(key, gamma)
    neighbours = set(itertools.pairwise(ids))
    found = detect(mark, ids)
    assert found.judged == len(neighbours)
    assert found.green == sum(bool(mark.is_green(one, other)) for one, other in neighbours)
    assert 0 <= found.p_value <= 1
    assert detect(mark, [*ids, *ids[::-1], *ids]).judged == len(
        neighbours | {(b, a) for a, b in neighbours} | {(i, i) for i in ids[:1] + ids[-1:]}
    )


def test_repeats_are_no_evidence() -> None:
    """A loop of green pairs, said often enough, would convince a detector that counts it."""
    mark = Watermark(1)
    loop = next(
        [one, other]
        for one, other in itertools.permutations(range(50), 2)
        if mark.is_green(one, other) and mark.is_green(other, one)
    )
    assert detect(mark, loop * 500) == detect(mark, [*loop, loop[0]])
    assert detect(mark, loop * 500).p_value == 0.25


@pytest.mark.parametrize("ids", [[], [3]])
def test_a_text_without_a_pair_says_nothing(ids: list[int]) -> None:
    found = detect(Watermark(), ids)
    assert (found.judged, found.green, found.z_score, found.p_value) == (0, 0, 0.0, 1.0)


def test_p_values_of_unmarked_texts_are_those_of_chance() -> None:
    """At levels that a few texts and keys can tell; the smaller level is the slow test's."""
    random = np.random.default_rng(1)
    texts = list(unmarked())[:: TEXTS // 20]
    keys = random.integers(0, 2**64, (len(texts), 300), np.uint64)
    for level in (0.5, 0.1, 0.01):
        share = np.mean(
            [small_p_values(ids, k, level) / len(k) for ids, k in zip(texts, keys, strict=True)]
        )
        assert level / 2 < share <= level * 1.15


@pytest.mark.slow
def test_one_unmarked_text_in_ten_thousand_looks_marked() -> None:
    """200 texts under 1,000 random keys each: the share with p < 1e-4."""
    random = np.random.default_rng(0)
    small = sum(
        small_p_values(ids, random.integers(0, 2**64, 1000, np.uint64), 1e-4) for ids in unmarked()
    )
    share = small / (TEXTS * 1000)
    print(f"share with p < 1e-4: {share:.2e}")
    assert 0.5e-4 <= share <= 2e-4


def test_the_quick_count_is_the_detectors() -> None:
    ids = held_out()[:200]
    keys = np.arange(50, dtype=np.uint64)
    level = 0.3
    slow = sum(detect(Watermark(int(key)), ids.tolist()).p_value < level for key in keys)
    assert small_p_values(ids, keys, level) == slow > 0


# --- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": -1}, "64 bits"),
        ({"key": 2**64}, "64 bits"),
        *[({"gamma": bad}, "gamma must be") for bad in (0.0, 1.0, -1.0, 1e-9, math.nan)],
        *[({"delta": bad}, "delta must be") for bad in (0.0, -1.0, 101.0, math.nan, math.inf)],
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, float], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        Watermark(**{"key": 1, **changes})  # type: ignore[arg-type]
    assert refused.value.param == "watermark"


def test_the_key_is_not_shown() -> None:
    mark = Watermark(key_of("hunter2"))
    params = SamplingParams(watermark=mark)
    assert str(mark.key) not in f"{mark!r} {params!r}"
    assert key_of("hunter2") != key_of("hunter3") != PUBLIC_KEY
