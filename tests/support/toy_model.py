"""A model of two layers in integers, whose every answer depends on every token that it may read.

Layer one stores a hash of (token, position). Layer two stores a hash of what the first layer reads
there, so it depends on the whole prefix, as deep layers do. The logits are a hash of what the
second layer reads. Each KV group reads all positions, or its window. All sums are modulo 2^64, so
the order of computation does not matter, and one wrong, stale or missing value changes the token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infercore.engine.request import Constraint, FinishReason, Request, TokenLogprobs
from infercore.errors import RequestError
from infercore.executor import GroupKind, KVGroup, KVGroups
from infercore.sampling import RowStatus, choose, log_softmax, top_logprobs
from infercore.step import Float32, UInt32, UInt64

VOCAB = 40
EOS = 1

Ints: TypeAlias = NDArray[np.integer[Any]]


def mix(*words: Ints | int) -> UInt64:
    """A 64-bit hash of integers, element by element (the finisher of SplitMix64)."""
    x: UInt64 = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            x = (x ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            x = x ^ x >> np.uint64(31)
    return x


@dataclass(frozen=True)
class ToyModel:
    """windows: one per KV group; None = it reads every position."""

    windows: tuple[int | None, ...] = (None,)

    def groups(self, block_size: int) -> KVGroups:
        return tuple(
            KVGroup(
                f"group{g}",
                GroupKind.FULL if window is None else GroupKind.WINDOW,
                (g,),
                block_size,
                16 * block_size,
                window,
            )
            for g, window in enumerate(self.windows)
        )

    def write(self, layer: int, group: int, inputs: Ints, positions: Ints) -> UInt64:
        """What a layer stores at `positions`: uint64 of their shape."""
        return mix(inputs, positions, 2 * group + layer)

    def read(self, group: int, stored: UInt64, positions: Ints) -> UInt64:
        """What queries at `positions` read of stored[0 : last position + 1]."""
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(stored, dtype=np.uint64)])
        window = self.windows[group]
        first = 0 if window is None else np.maximum(positions - window + 1, 0)
        with np.errstate(over="ignore"):
            found: UInt64 = sums[positions + 1] - sums[first]
        return found

    def logits(self, hidden: Ints | int) -> Float32:
        """float32[V] between −4 and 4."""
        words = mix(hidden, np.arange(VOCAB)) >> np.uint64(40)
        return words.astype(np.float32) / np.float32(2**21) - np.float32(4)

    def hidden(self, ids: Sequence[int]) -> UInt64:
        """What the head sees at every position, computed in one piece without any cache."""
        positions = np.arange(len(ids))
        inputs: NDArray[Any] = np.array(ids, np.int64)
        for layer in range(2):
            total = np.zeros(len(ids), np.uint64)
            for group in range(len(self.windows)):
                stored = self.write(layer, group, inputs, positions)
                total = total + self.read(group, stored, positions)
            inputs = total
        return inputs


class NoRepeat:
    """A constraint that depends on the last token: no two neighbours are equal modulo 3.

    fails_at: output length at which no mask can be made; stuck_at: at which nothing is allowed.
    """

    def __init__(self, fails_at: int | None = None, stuck_at: int | None = None) -> None:
        self._fails_at, self._stuck_at = fails_at, stuck_at
        self._last, self._length = 0, 0

    def accept(self, token_id: int) -> None:
        assert bool(self._allowed()[token_id]), f"token {token_id} was chosen against the mask"
        self._last, self._length = token_id, self._length + 1

    def fill(self, bitmask: UInt32) -> None:
        assert not bitmask.any(), "the bitmask is given all zero"
        if self._length == self._fails_at:
            raise RequestError("the grammar has no such state")
        if self._length != self._stuck_at:
            bits = np.packbits(self._allowed(), bitorder="little")
            bitmask.view(np.uint8)[: len(bits)] = bits

    def fresh(self) -> "NoRepeat":
        return NoRepeat(self._fails_at, self._stuck_at)

    def _allowed(self) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = np.arange(VOCAB) % 3 != self._last % 3
        return allowed


@dataclass
class Answer:
    """What a request must get. `error` stands for any error."""

    tokens: list[int] = field(default_factory=list)
    reason: FinishReason = FinishReason.LENGTH
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None


def expected(request: Request, model: ToyModel, max_model_len: int) -> Answer:
    """The answer to a request alone, without engine, blocks or steps."""
    sampling, prompt = request.sampling, list(request.prompt_ids)
    answer, output = Answer(), list(request.output_ids)
    eos = () if sampling.ignore_eos else (EOS,)
    stops = {*eos, *sampling.stop_token_ids}
    constraint = None if request.constraint is None else request.constraint.fresh()
    for token in output:
        _accept(constraint, token)
    if sampling.prompt_logprobs is not None:
        answer.prompt_logprobs = prompt_logprobs(prompt, model, sampling.prompt_logprobs)
    while len(output) < (sampling.max_tokens or max_model_len - len(prompt)):
        logits = model.logits(model.hidden(prompt + output)[-1])
        try:
            allowed = None if constraint is None else _mask(constraint)
        except RequestError:
            return replace(answer, reason=FinishReason.ERROR)
        choice = choose(
            logits,
            sampling,
            prompt_ids=prompt,
            output_ids=output,
            seed=sampling.seed or 0,
            position=len(prompt) + len(output),
            allowed=allowed,
            banned=sorted(stops) if len(output) < sampling.min_tokens else (),
        )
        if choice.status is not RowStatus.OK:
            return replace(answer, reason=FinishReason.ERROR)
        _accept(constraint, choice.token)
        output.append(choice.token)
        answer.tokens.append(choice.token)
        answer.logprobs.append(_report(logits, choice.token, sampling.logprobs or 0))
        if choice.token in stops:
            reason = FinishReason.EOS if choice.token in eos else FinishReason.STOP
            return replace(answer, reason=reason)
    return answer


def prompt_logprobs(prompt: list[int], model: ToyModel, top: int) -> list[TokenLogprobs | None]:
    hidden = model.hidden(prompt)
    return [
        None,
        *(_report(model.logits(hidden[i - 1]), prompt[i], top) for i in range(1, len(prompt))),
    ]


def _report(logits: Float32, token: int, top: int) -> TokenLogprobs:
    ids, values = top_logprobs(logits, top)
    own = float(log_softmax(logits)[token])
    return TokenLogprobs(own, tuple(ids.tolist()), tuple(values.tolist()))


def _accept(constraint: Constraint | None, token: int) -> None:
    if constraint is not None:
        constraint.accept(token)


def _mask(constraint: Constraint) -> NDArray[np.bool_]:
    words = np.zeros(-(-VOCAB // 32), np.uint32)
    constraint.fill(words)
    return unpack(words)


def unpack(words: UInt32) -> NDArray[np.bool_]:
    """bool[V] of a bitmask uint32[ceil(V / 32)]."""
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCAB].astype(np.bool_)
