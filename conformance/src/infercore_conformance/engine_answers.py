"""What the engine answered, and whether two answers to the same request are the same.

Two devices' roundings differ, and so do two shapes' on one device: a token may be another one
where the definition of sampling (`infercore.sampling`) leaves it open, that is, where the scores of
the two are closer than twice the tolerance of a log-probability. Behind such a place the texts are
two different ones, and nothing more is compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infercore.engine.request import FinishReason, Output, Request, TokenLogprobs
from infercore.errors import RequestError
from infercore.sampling import gumbel, process, scale
from infercore.step import Float32
from infercore_conformance.models import VOCAB


@dataclass(slots=True)
class Answer:
    """All that one request got. `reason` is None until it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    reason: FinishReason | None = None
    error: RequestError | None = None

    def take(self, output: Output) -> None:
        """Raises AssertionError for an output behind the last one."""
        who = f"request {output.request_id}"
        assert self.reason is None, f"{who} ended twice: {self.reason}, {output.finish_reason}"
        assert output.token_ids or output.finish_reason, f"{who} got an output that says nothing"
        self.tokens += output.token_ids
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.cached_tokens += output.cached_tokens
        self.reason, self.error = output.finish_reason, output.error

    def distributions(self) -> Float32:
        """Log-probabilities float32 [n, V], by id, of a request that asked for all of them."""
        by_id = np.empty((len(self.logprobs), VOCAB), np.float32)
        for row, each in zip(by_id, self.logprobs, strict=True):
            assert sorted(each.top_ids) == list(range(VOCAB)), (
                f"the {VOCAB} likeliest ids are not the {VOCAB} ids there are"
            )
            row[list(each.top_ids)] = each.top_logprobs
        return by_id


Answers = Mapping[int, Answer]
"""By request id."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two sets of answers are apart.

    largest: |difference| of two log-probabilities under the same text.
    forks: texts that part where the two tokens' scores were as good as equal.
    wrong: what no rounding explains, in words.
    """

    largest: float
    forks: int
    wrong: Sequence[str]


def compare(
    requests: Iterable[Request], expected: Answers, found: Answers, bound: float
) -> Comparison:
    """bound: of |difference| of log-probabilities; a choice is open below twice as much."""
    largest, forks, wrong = 0.0, 0, []
    for request in requests:
        one, other = expected[request.request_id], found[request.request_id]
        same = _common(one.tokens, other.tokens)
        whole = same == len(one.tokens) == len(other.tokens)
        compared = same if whole else same + 1
        difference = np.abs(one.distributions()[:compared] - other.distributions()[:compared])
        largest = max(largest, float(difference.max(initial=0.0)))
        if whole and one.reason is not other.reason:
            wrong.append(f"request {request.request_id} ended by {other.reason}, not {one.reason}")
        elif not whole:
            fault = _parting(request, one, other, same, bound)
            forks += fault is None
            wrong += [] if fault is None else [fault]
    return Comparison(largest, forks, wrong)


def differing_bits(requests: Iterable[Request], expected: Answers, found: Answers) -> list[str]:
    """The requests whose tokens or log-probabilities are not the same to the last bit."""
    wrong = []
    for request in requests:
        one, other = expected[request.request_id], found[request.request_id]
        if one.tokens != other.tokens or one.reason is not other.reason:
            wrong.append(f"request {request.request_id}: {other.tokens}, not {one.tokens}")
        elif one.logprobs != other.logprobs:
            wrong.append(f"request {request.request_id}: the bits of its log-probabilities differ")
    return wrong


def scores(request: Request, answer: Answer, place: int) -> NDArray[np.float64]:
    """What the token at `place` was chosen by: the largest wins. float64 [V].

    For requests without filters. Log-probabilities stand for the logits, which differ from them by
    a constant: bans, bias, frequency and presence penalties and temperature allow for that.
    """
    sampling, logprobs = request.sampling, answer.distributions()[place]
    penalized = process(
        logprobs, sampling, prompt_ids=request.prompt_ids, output_ids=answer.tokens[:place]
    )
    if sampling.greedy:
        return penalized.astype(np.float64)
    assert sampling.seed is not None
    position = len(request.prompt_ids) + place
    noise = gumbel(sampling.seed, position, np.arange(VOCAB))
    return scale(penalized, sampling.temperature) + noise


def open_below(request: Request, bound: float) -> float:
    """How close two scores are that a rounding of `bound` may put in the other order."""
    temperature = request.sampling.temperature or 1.0
    return 2 * bound / min(temperature, 1.0)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _parting(request: Request, one: Answer, other: Answer, place: int, bound: float) -> str | None:
    """None if the texts part at `place` by a choice that was open."""
    who = f"request {request.request_id}"
    if place in (len(one.tokens), len(other.tokens)):
        lengths = f"{len(other.tokens)} tokens, not {len(one.tokens)}"
        return f"{who} ended by {other.reason} after {lengths}"
    a, b = one.tokens[place], other.tokens[place]
    own = scores(request, one, place)
    margin = float(own.max() - min(own[a], own[b]))  # of the best over both
    if margin <= open_below(request, bound):
        return None
    return f"{who}: token {place} is {b}, not {a}, and their scores differ by {margin:.3g}"
