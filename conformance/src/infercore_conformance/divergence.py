"""How far two backends are apart on one model, and where they part: the figures and their words."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infercore.step import Float32

LAYER_SHARE = 0.1  # of the bound on log-probabilities: relative rounding inside of the model

Float64: TypeAlias = NDArray[np.float64]
Place: TypeAlias = tuple[int, int]  # (prompt, token behind it), from 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One backend's numbers behind each prompt P and each of N tokens.

    tokens int64 [P, N]: what it chose. logprobs float32 [P, N, V], by id.
    """

    tokens: NDArray[np.int64]
    logprobs: Float32

    @property
    def margins(self) -> Float32:
        """How much likelier the likeliest token is than the next, float32 [P, N], in nats."""
        second, first = np.moveaxis(np.partition(self.logprobs, -2, axis=-1)[..., -2:], -1, 0)
        margins: Float32 = first - second
        return margins


@dataclass(frozen=True, slots=True)
class Divergence:
    """What `Comparison.run` found.

    kl: Kullback-Leibler divergence of the second backend's distributions from the first's, in
        nats, float64 [P, N].
    chosen: both backends' tokens. margins: both backends', see `Reading`; both [2, P, N].
    place: the first token that differs, a real difference before a near tie; where none does, the
        token of the largest divergence.
    parts: {part of the decoder: relative difference of its output}, in the step that yields the
        token at `place`; None where one of the two is no Backend.
    bound: of rounding, on log-probabilities.
    """

    kl: Float64
    chosen: NDArray[np.int64]
    margins: Float32
    place: Place
    parts: dict[str, float] | None
    bound: float

    @property
    def differs(self) -> bool:
        """The token at `place` does, be it by rounding."""
        return bool(self.chosen[0][self.place] != self.chosen[1][self.place])

    @property
    def near_tie(self) -> bool:
        """Rounding alone may change the choice at `place`."""
        return bool(self.margins[:, *self.place].max() <= 2 * self.bound)

    @property
    def first_part(self) -> str | None:
        """The first part of the decoder that differs by more than rounding."""
        parts = self.parts or {}
        return next((name for name, by in parts.items() if not by <= self.part_bound), None)

    @property
    def part_bound(self) -> float:
        return LAYER_SHARE * self.bound

    @property
    def alike(self) -> bool:
        """Nothing differs by more than rounding."""
        return self.first_part is None and (self.near_tie or not self.differs)


def described(found: Divergence, first: str, second: str) -> str:
    """The findings, for people. Prompts and tokens are counted from 1."""
    prompts, tokens = found.kl.shape
    lines = (
        f"{first} and {second}, {tokens} tokens behind each of {prompts} prompts",
        f"  logit KL               {_kl_line(found.kl)}",
        f"  first differing token  {_token_line(found, first, second)}",
        f"  first differing layer  {_part_line(found)}",
        "alike" if found.alike else "NOT alike",
    )
    return "\n".join(lines)


def _kl_line(kl: Float64) -> str:
    prompt, token = np.unravel_index(kl.argmax(), kl.shape)
    where = f"prompt {prompt + 1}, token {token + 1}"
    return f"mean {kl.mean():.2e} nats, largest {kl.max():.2e} ({where})"


def _token_line(found: Divergence, first: str, second: str) -> str:
    if not found.differs:
        return f"none of {found.kl.size}"
    choices = " and ".join(
        f"{name} chose {found.chosen[n][found.place]} by {found.margins[n][found.place]:.2e} nats"
        for n, name in enumerate((first, second))
    )
    tie = "; a near tie, that rounding decides" if found.near_tie else ""
    return f"prompt {found.place[0] + 1}, token {found.place[1] + 1}: {choices}{tie}"


def _part_line(found: Divergence) -> str:
    if found.parts is None:
        return "not known: one of the two is an Executor of its own, and no Backend"
    name = found.first_part
    if name is not None:
        return f"{name}, by {found.parts[name]:.2e} of its size (rounding: {found.part_bound:.0e})"
    largest = max(found.parts.values())
    cause = "; look at compile and the sampler" if not found.alike else ""
    return f"none of {len(found.parts)} parts, at most {largest:.2e} of its size{cause}"


def kl_divergence(first: Float64, second: Float64) -> Float64:
    """Σ p · (log p − log q) over the last dimension."""
    weights = np.exp(first)
    apart = np.subtract(first, second, out=np.zeros_like(first), where=weights > 0)
    divergence: Float64 = np.maximum((weights * apart).sum(axis=-1), 0.0)  # rounding goes below
    return divergence


def first_difference(
    chosen: NDArray[np.int64], margins: Float32, kl: Float64, bound: float
) -> Place:
    differs = chosen[0] != chosen[1]
    real = differs & (margins.max(axis=0) > 2 * bound)
    where = real if real.any() else differs
    at = where.argmax() if where.any() else kl.argmax()
    prompt, token = np.unravel_index(at, kl.shape)
    return int(prompt), int(token)


def distance(first: Float32, second: Float32) -> float:
    """Relative, of root mean squares."""
    apart = np.sqrt(np.mean((first - second) ** 2, dtype=np.float64))
    return float(apart / max(np.sqrt(np.mean(first**2, dtype=np.float64)), 1e-30))
