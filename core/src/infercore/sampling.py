"""Sampling is a definition: this file is the normative form, every other sampler must equal it.

A token is chosen from a row of float32 logits [V] in this order (`choose`):

    grammar and bans (−inf) → logit bias → watermark → repetition → frequency, presence
        → ÷ temperature → top-k → top-p → typical-p → min-p → argmax(score + noise)

Exactness, so that another implementation can equal it token for token:
  - Up to and including the division by temperature every operation is rounded to float32
    on its own, in the order written here, without fused multiply-add. Parameters are rounded to
    float32 first.
  - Probability masses are float64: weights exp(score) of the survivors, added up in sorted order,
    compared without a division (`mass ≥ p · total`), so that equal logits give exact answers.
  - Noise is float64, made from float32 `v`; score + noise is float64; the lowest id wins ties.

Nothing here keeps state: the same seed, position and logits give the same token on any device,
after a preemption, in any company.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infercore.errors import InvalidRequest

if TYPE_CHECKING:
    from infercore.watermark import Watermark

MAX_SEED = 2**64 - 1
MAX_COUNT = 2**31 - 1

_Float32: TypeAlias = NDArray[np.float32]
_Float64: TypeAlias = NDArray[np.float64]
_Int64: TypeAlias = NDArray[np.int64]
_UInt32: TypeAlias = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one sequence are chosen and when it ends. Immutable, checked at creation.

    Chosen by:
      temperature: 0 is greedy (argmax after the penalties).
      top_k: keep the k best; 0 or -1 = all.
      top_p, typical_p: keep the shortest prefix with at least this probability mass; 1 = off.
      min_p: drop tokens less likely than this share of the most likely one; 0 = off.
      repetition_penalty: over prompt and output (Keskar et al. 2019); 1 = off.
      frequency_penalty, presence_penalty: over the output, OpenAI's formula; 0 = off.
      logit_bias: {token id: added to its logit}; −100 and below, like −inf, in effect bans it.
      watermark: marks the text so that whoever has the key can tell; None = no mark.
      seed: 64 bits; None lets the caller of the engine draw one.

    Ends by:
      max_tokens: most tokens to generate; None = up to the context length.
      min_tokens: EOS and stop ids are banned until so many were generated.
      stop: texts that end it, applied where text is made (router, `LLM`), not in the engine.
      stop_token_ids: ids that end it, beside the model's EOS ids.
      ignore_eos: the model's EOS ids do not end it.

    Reports:
      logprobs: None = none; 0 = the chosen token's; n = also the n likeliest.
      prompt_logprobs: the same for the tokens of the prompt.

    Raises InvalidRequest, with `param` set, for a value of a wrong type or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    watermark: "Watermark | None" = None

    def __post_init__(self) -> None:
        stop: Any = self.stop  # one text is taken too
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, low, high, low_open in _RANGES:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_number(name, value)
                _check_range(name, value, low, high, low_open)
        _check_ids("stop_token_ids", self.stop_token_ids)
        _check_ids("logit_bias", self.logit_bias)
        for token, bias in self.logit_bias.items():
            if not bias <= LARGEST:
                raise InvalidRequest(f"logit_bias: {bias} for token {token}", "logit_bias")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


LARGEST = 1e38  # of a number that is rounded to float32
# name, low, high, low is excluded
_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("temperature", 0.0, LARGEST, False),
    ("top_k", -1, MAX_COUNT, False),
    ("top_p", 0.0, 1.0, True),
    ("typical_p", 0.0, 1.0, True),
    ("min_p", 0.0, 1.0, False),
    ("repetition_penalty", 0.0, LARGEST, True),
    ("frequency_penalty", -2.0, 2.0, False),
    ("presence_penalty", -2.0, 2.0, False),
    ("seed", 0, MAX_SEED, False),
    ("max_tokens", 1, MAX_COUNT, False),
    ("min_tokens", 0, MAX_COUNT, False),
    ("logprobs", 0, MAX_COUNT, False),
    ("prompt_logprobs", 0, MAX_COUNT, False),
)
_WHOLE = {"top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"}
_OPTIONAL = {"seed", "max_tokens", "logprobs", "prompt_logprobs"}  # may be None


def _check_number(name: str, value: object) -> None:
    whole = name in _WHOLE
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        kind = "an integer" if whole else "a number"
        raise InvalidRequest(f"{name} must be {kind}. Given: {value!r}", name)


def _check_range(name: str, value: Any, low: float, high: float, low_open: bool) -> None:
    left = "(" if low_open else "["
    # NaN compares false, so it is refused too
    if not ((low < value if low_open else low <= value) and value <= high):
        raise InvalidRequest(f"{name} must be in {left}{low:g}, {high:g}]. Given: {value}", name)


def _check_ids(name: str, ids: Iterable[object]) -> None:
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int | np.integer) or token < 0:
            raise InvalidRequest(f"{name}: {token!r} is not a token id", name)


# --- noise -------------------------------------------------------------------------------------

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
KEY_PARITY = 0x1BD11BDA
LARGEST_V = 1 - 2**-24


def threefry2x32(
    key: tuple[ArrayLike, ArrayLike], counter: tuple[ArrayLike, ArrayLike]
) -> tuple[_UInt32, _UInt32]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011): two hashed words of uint32.

    All four words broadcast against each other; arithmetic is modulo 2³².
    """
    k0, k1, c0, c1 = (np.asarray(word, np.uint32) for word in (*key, *counter))
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(KEY_PARITY))
    with np.errstate(over="ignore"):
        x0, x1 = c0 + k0, c1 + k1
        for i in range(20):
            bits = np.uint32(ROTATIONS[i % 8])
            x0 = x0 + x1
            x1 = (x1 << bits | x1 >> (np.uint32(32) - bits)) ^ x0
            if i % 4 == 3:
                n = i // 4 + 1
                x0 = x0 + keys[n % 3]
                x1 = x1 + (keys[(n + 1) % 3] + np.uint32(n))
    return x0, x1


def gumbel(seed: ArrayLike, position: ArrayLike, ids: ArrayLike) -> _Float64:
    """Standard Gumbel noise, a function of (seed, position, token id) alone.

    seed: 64 bits, its low half is the first word of the key. position: of the token being chosen,
    in the whole sequence. ids: global vocabulary ids. All broadcast against each other.
    """
    seed64, id32 = np.asarray(seed, np.uint64), np.asarray(ids, np.uint32)
    key = (seed64 & np.uint64(0xFFFFFFFF), seed64 >> np.uint64(32))
    even, odd = threefry2x32(key, (position, id32 >> np.uint32(1)))
    word = np.where(id32 & np.uint32(1), odd, even)
    v = (word.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)
    v = np.minimum(v, np.float32(LARGEST_V))
    noise: _Float64 = -np.log(-np.log1p(-v.astype(np.float64)))
    return noise


# --- scores: each stage takes and returns float32 [V] --------------------------------------------


def mask(scores: _Float32, allowed: NDArray[np.bool_] | None, banned: Sequence[int]) -> _Float32:
    """−inf where a grammar does not allow (bool [V], None = all), and at banned ids."""
    masked = scores.copy() if allowed is None else np.where(allowed, scores, np.float32(-np.inf))
    masked[list(banned)] = -np.inf
    return masked


def bias(scores: _Float32, logit_bias: Mapping[int, float]) -> _Float32:
    """Add each bias to its token's score."""
    biased = scores.copy()
    for token, value in logit_bias.items():
        biased[token] += np.float32(value)
    return biased


def penalize_repetition(scores: _Float32, seen_ids: ArrayLike, penalty: float) -> _Float32:
    """Positive scores of seen tokens ÷ penalty, the others × penalty (Keskar et al. 2019)."""
    seen = np.zeros(scores.shape, np.bool_)
    seen[np.asarray(seen_ids, np.int64)] = True
    factor = np.float32(penalty)
    return np.where(seen, np.where(scores > 0, scores / factor, scores * factor), scores)


def penalize_frequency(
    scores: _Float32, output_ids: ArrayLike, frequency: float, presence: float
) -> _Float32:
    """score − frequency · count, then − presence where the count is not 0 (OpenAI)."""
    counts = np.bincount(np.asarray(output_ids, np.int64), minlength=len(scores))
    lowered: _Float32 = scores - np.multiply(np.float32(frequency), counts, dtype=np.float32)
    return np.where(counts > 0, lowered - np.float32(presence), lowered)


def scale(scores: _Float32, temperature: float) -> _Float32:
    """(score − largest score) ÷ temperature: the shift keeps a tiny temperature from overflowing.

    The largest becomes 0, so exp(score) is a weight relative to the likeliest token's.
    """
    divisor = max(np.float32(temperature), np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        scaled: _Float32 = (scores - scores.max()) / divisor
    return scaled


# --- filters: each takes and returns survivors, ids sorted by (score falling, id rising) ---------


def rank(scores: _Float32) -> _Int64:
    """Ids of the tokens that are possible at all, score falling, id rising."""
    ids = np.argsort(-scores, kind="stable")
    return ids[scores[ids] > -np.inf]


def keep_top_k(ids: _Int64, top_k: int) -> _Int64:
    return ids[:top_k] if top_k > 0 else ids


def keep_top_p(ids: _Int64, scores: _Float32, top_p: float) -> _Int64:
    """The shortest prefix with mass ≥ top_p (Holtzman et al. 2020)."""
    return ids if top_p == 1 else ids[: _prefix(_weights(scores[ids]), top_p)]


def keep_typical(ids: _Int64, scores: _Float32, typical_p: float) -> _Int64:
    """The shortest prefix with mass ≥ typical_p in the order of |surprise − entropy| rising.

    Meister et al. 2023. Survivors return in their former order.
    """
    if typical_p == 1:
        return ids
    weights, survivors = _weights(scores[ids]), scores[ids].astype(np.float64)
    total = np.cumsum(weights)[-1]
    mean_score = np.cumsum(weights * survivors)[-1] / total  # = log total − entropy
    order = np.argsort(np.abs(mean_score - survivors), kind="stable")
    return ids[np.sort(order[: _prefix(weights[order], typical_p)])]


def keep_min_p(ids: _Int64, scores: _Float32, min_p: float) -> _Int64:
    """Tokens at least min_p times as likely as the likeliest survivor (Nguyen et al. 2024)."""
    weights = _weights(scores[ids])
    kept: _Int64 = ids[weights >= min_p * weights.max()]
    return kept


def _weights(scores: _Float32) -> _Float64:
    weights: _Float64 = np.exp(scores.astype(np.float64))
    return weights


def _prefix(weights: _Float64, p: float) -> int:
    """Length of the shortest prefix with at least the share p of the whole weight."""
    mass = np.cumsum(weights)
    return int(np.searchsorted(mass, p * mass[-1])) + 1


# --- the choice ----------------------------------------------------------------------------------


class RowStatus(IntEnum):
    """How the choice of a row's token ended."""

    OK = 0
    NOT_SAMPLED = 1  # the row was not asked for a token (a prefill chunk before the last)
    DROPPED = 2  # the late inputs said so
    NOT_FINITE = 3  # NaN or +inf among its logits, or among what penalties made of them
    NO_TOKEN = 4  # bans and masks left no token


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token and its log-probability. Both are 0 if `status` is not OK."""

    token: int
    logprob: float
    status: RowStatus


def process(
    logits: _Float32,
    params: SamplingParams,
    *,
    prompt_ids: ArrayLike = (),
    output_ids: ArrayLike = (),
    allowed: NDArray[np.bool_] | None = None,
    banned: Sequence[int] = (),
) -> _Float32:
    """The stages before temperature: masks, bias, mark, penalties. float32 [V] → float32 [V]."""
    frequency, presence = params.frequency_penalty, params.presence_penalty
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scores = bias(mask(logits, allowed, banned), params.logit_bias)
        seen = np.concatenate([np.asarray(ids, np.int64) for ids in (prompt_ids, output_ids)])
        if params.watermark is not None:
            scores = params.watermark.mark(scores, seen[-1])
        if params.repetition_penalty != 1:
            scores = penalize_repetition(scores, seen, params.repetition_penalty)
        return penalize_frequency(scores, output_ids, frequency, presence)


def survivors(scores: _Float32, params: SamplingParams) -> _Int64:
    """Ids that top-k, top-p, typical-p and min-p leave of scaled scores, likeliest first."""
    ids = keep_top_k(rank(scores), params.top_k)
    ids = keep_top_p(ids, scores, params.top_p)
    ids = keep_typical(ids, scores, params.typical_p)
    return keep_min_p(ids, scores, params.min_p)


def choose(
    logits: _Float32,
    params: SamplingParams,
    *,
    prompt_ids: ArrayLike = (),
    output_ids: ArrayLike = (),
    seed: int,
    position: int,
    allowed: NDArray[np.bool_] | None = None,
    banned: Sequence[int] = (),
) -> Choice:
    """Choose the next token of one sequence.

    logits: float32 [V], the model's own, of which the log-probability is. prompt_ids, output_ids:
    what came before; `position` is the chosen token's index in the whole sequence. allowed:
    bool [V], a grammar's mask. banned: ids that must not come now (stop ids before min_tokens).
    """
    scores = process(
        logits, params, prompt_ids=prompt_ids, output_ids=output_ids, allowed=allowed, banned=banned
    )
    if not (_finite(logits) and _finite(scores)):
        return Choice(0, 0.0, RowStatus.NOT_FINITE)
    if scores.max() == -np.inf:
        return Choice(0, 0.0, RowStatus.NO_TOKEN)
    if params.greedy:
        token = int(np.argmax(scores))
    else:
        scores = scale(scores, params.temperature)
        ids = np.sort(survivors(scores, params))
        token = int(ids[np.argmax(scores[ids] + gumbel(seed, position, ids))])
    return Choice(token, float(log_softmax(logits)[token]), RowStatus.OK)


def _finite(scores: _Float32) -> bool:
    return bool(scores.max() < np.inf)  # a NaN is the maximum, and is below nothing


def log_softmax(logits: _Float32) -> _Float32:
    """Log-probabilities of the model's own distribution: float64 inside, rounded to float32."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs: _Float64 = shifted - np.log(np.exp(shifted).sum())
    return logprobs.astype(np.float32)


def top_logprobs(logits: _Float32, n: int) -> tuple[_Int64, _Float32]:
    """The n likeliest ids and their log-probabilities, (logit falling, id rising)."""
    ids = np.argsort(-logits, kind="stable")[:n]
    return ids, log_softmax(logits)[ids]
