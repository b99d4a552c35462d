"""The watermark is a definition too: this file is its normative form, and that of its detector.

A soft red list (Kirchenbauer et al. 2023, arXiv 2301.10226) whose hash sees one token back. After
the token `context`, each token of the vocabulary is green or not, and `delta` is added to the
scores of green ones (float32, rounded once) before a token is chosen:

    w = Threefry-2x32-20(key, counter = (2³¹ + context, id >> 2))
    lot = 16 bits of w: of its word (id & 3) >> 1, the low half if id is even, else the high one
    green = lot < round(gamma · 2¹⁶)

The counters are not those of the noise (`sampling.gumbel`), whose first word is below 2³¹. Every
(context, id) has a lot of its own, so the number of green tokens in a text that was made without
the key is binomial, once each pair that repeats is counted once: repeats are no new evidence.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infercore.errors import InvalidRequest
from infercore.sampling import MAX_SEED, threefry2x32

LOT_BITS = 16
CONTEXT_BIT = 1 << 31
MAX_DELTA = 100.0

_UInt16: TypeAlias = NDArray[np.uint16]
_Bool: TypeAlias = NDArray[np.bool_]
_Float32: TypeAlias = NDArray[np.float32]


def key_of(secret: str) -> int:
    """The 64-bit key behind a secret text of any length (BLAKE2b of its UTF-8)."""
    return int.from_bytes(hashlib.blake2b(secret.encode(), digest_size=8).digest(), "little")


PUBLIC_KEY = key_of("infercore")
"""For whoever has no secret: a mark that everybody can find, and everybody can forge."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """What marks a text, and finds the mark again. Immutable, checked at creation.

    key: 64 bits; not shown by `repr`.
    gamma: the share of green tokens, kept to multiples of 2⁻¹⁶.
    delta: added to the logits of green tokens.

    Raises InvalidRequest, with `param` set, for a value out of range.
    """

    key: int = field(default=PUBLIC_KEY, repr=False)
    gamma: float = 0.5
    delta: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.key <= MAX_SEED:
            raise InvalidRequest("watermark: its key must have 64 bits", "watermark")
        if not (0 < self.gamma < 1 and 0 < self.threshold < 1 << LOT_BITS):
            raise InvalidRequest(
                f"watermark: gamma must be between 2⁻¹⁶ and 1 − 2⁻¹⁶. Given: {self.gamma}",
                "watermark",
            )
        if not 0 < self.delta <= MAX_DELTA:
            raise InvalidRequest(
                f"watermark: delta must be in (0, {MAX_DELTA:g}]. Given: {self.delta}", "watermark"
            )

    @property
    def threshold(self) -> int:
        """A token whose lot is below it is green."""
        return round(self.gamma * (1 << LOT_BITS))

    def is_green(self, contexts: ArrayLike, ids: ArrayLike) -> _Bool:
        """Whether each id is green after its context. Both broadcast against each other."""
        return lots(self.key, contexts, ids) < self.threshold

    def green_list(self, context: int, vocab_size: int) -> _Bool:
        """bool [V]: the ids that are green after `context`."""
        fours = np.arange(-(-vocab_size // 4), dtype=np.uint32)
        words = np.stack(_words(self.key, context, fours), axis=1)
        halves = (words[:, :, None] >> np.array([0, LOT_BITS], np.uint32)).astype(np.uint16)
        return halves.reshape(-1)[:vocab_size] < self.threshold

    def mark(self, scores: _Float32, context: int) -> _Float32:
        """Scores float32 [V] of the token after `context`, with delta added to green ones."""
        raised: _Float32 = scores + np.float32(self.delta)
        return np.where(self.green_list(context, len(scores)), raised, scores)


def lots(key: ArrayLike, contexts: ArrayLike, ids: ArrayLike) -> _UInt16:
    """The lot of each (key, context, id), evenly spread over 16 bits. All broadcast.

    key: 64 bits. contexts, ids: global vocabulary ids.
    """
    id32 = np.asarray(ids, np.uint32)
    low, high = _words(key, contexts, id32 >> np.uint32(2))
    word = np.where(id32 & np.uint32(2), high, low)
    lot: _UInt16 = (word >> (id32 & np.uint32(1)) * np.uint32(LOT_BITS)).astype(np.uint16)
    return lot


def _words(
    key: ArrayLike, contexts: ArrayLike, fours: ArrayLike
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Two words for each four ids that begin at 4 · fours."""
    key64 = np.asarray(key, np.uint64)
    halves = (key64 & np.uint64(0xFFFFFFFF), key64 >> np.uint64(32))
    return threefry2x32(halves, (np.asarray(contexts, np.uint32) | np.uint32(CONTEXT_BIT), fours))


# --- the detector --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Detection:
    """What a text says about one key.

    judged: different pairs of neighbouring tokens, each scored once. green: those of them whose
        second token is green after the first.
    z_score: standard deviations by which `green` is above the share gamma of `judged`.
    p_value: the probability that a text made without the key has at least so many green tokens:
        exact, of the binomial distribution. Below 1e-308 it is 0.
    """

    judged: int
    green: int
    z_score: float
    p_value: float


def detect(watermark: Watermark, token_ids: Sequence[int]) -> Detection:
    """Look for the mark in the tokens of a text; the first one is context only.

    A text of fewer than two tokens has nothing to judge: z-score 0, p-value 1.
    """
    contexts, ids = pairs(token_ids)
    judged, green = len(ids), int(watermark.is_green(contexts, ids).sum())
    share = watermark.threshold / (1 << LOT_BITS)
    spread = math.sqrt(judged * share * (1 - share))
    z_score = (green - judged * share) / spread if judged else 0.0
    return Detection(judged, green, z_score, float(upper_tail(judged, share)[green]))


def pairs(token_ids: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(contexts, ids) int64: each pair of neighbours that occurs, once, in rising order."""
    ids = np.asarray(token_ids, np.int64)
    both = np.unique(ids[:-1] << 32 | ids[1:])
    return both >> 32, both & 0xFFFFFFFF


def upper_tail(count: int, share: float) -> NDArray[np.float64]:
    """float64 [count + 1]: the probability of at least k successes in `count` draws, for each k."""
    k = np.arange(1, count + 1)
    odds = np.log((count + 1 - k) / k) + math.log(share / (1 - share))
    logs = np.concatenate([[0.0], np.cumsum(odds)]) + count * math.log1p(-share)
    tail: NDArray[np.float64] = np.minimum(np.cumsum(np.exp(logs)[::-1])[::-1], 1.0)
    return tail
