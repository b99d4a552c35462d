"""Sampling is a definition: this file is the normative form, every other sampler must equal it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from infercore.errors import InvalidRequest

MAX_SEED = 2**64 - 1


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

    Raises InvalidRequest, with `param` set, for a value out of range or not finite.
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

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, low, high, low_open, high_open in _RANGES:
            _check_range(name, getattr(self, name), low, high, low_open, high_open)
        for token, bias in self.logit_bias.items():
            if token < 0:
                raise InvalidRequest(f"logit_bias: {token} is not a token id", "logit_bias")
            if math.isnan(bias) or bias == math.inf:
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


# name, low, high, low is excluded, high is excluded; None of a value passes
_RANGES: tuple[tuple[str, float, float, bool, bool], ...] = (
    ("temperature", 0.0, math.inf, False, True),
    ("top_k", -1, math.inf, False, True),
    ("top_p", 0.0, 1.0, True, False),
    ("typical_p", 0.0, 1.0, True, False),
    ("min_p", 0.0, 1.0, False, False),
    ("repetition_penalty", 0.0, math.inf, True, True),
    ("frequency_penalty", -2.0, 2.0, False, False),
    ("presence_penalty", -2.0, 2.0, False, False),
    ("seed", 0, MAX_SEED, False, False),
    ("max_tokens", 1, math.inf, False, True),
    ("min_tokens", 0, math.inf, False, True),
    ("logprobs", 0, math.inf, False, True),
    ("prompt_logprobs", 0, math.inf, False, True),
)


def _check_range(
    name: str, value: float | None, low: float, high: float, low_open: bool, high_open: bool
) -> None:
    if value is None:
        return
    inside = (low < value if low_open else low <= value) and (
        value < high if high_open else value <= high
    )
    if not inside:  # NaN compares false, so it lands here too
        left, right = "(" if low_open else "[", ")" if high_open else "]"
        raise InvalidRequest(
            f"{name} must be in {left}{low:g}, {high:g}{right}. Given: {value}", name
        )
