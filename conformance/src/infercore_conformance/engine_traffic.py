"""Requests for an engine: prompts of many lengths, greedy, seeded, biased and penalized."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from infercore.engine.request import Request
from infercore.sampling import SamplingParams
from infercore_conformance.models import VOCAB
from infercore_conformance.steps import prompt

LENGTHS = (1, 17, 40, 5, 60, 30, 16, 33)  # of prompts: around blocks, chunks and windows
TOKENS = 6
FAVOURED = dict.fromkeys(range(20, 26), 15.0)  # so likely that penalties decide among them
# how the tokens are chosen, in turn; without filters, whose thresholds `scores` cannot see
CHOICES: Sequence[dict[str, Any]] = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {
        "temperature": 0.0,
        "frequency_penalty": 2.0,
        "presence_penalty": 1.0,
        "logit_bias": FAVOURED,
    },
    {"temperature": 1.2, "frequency_penalty": 2.0, "logit_bias": {**FAVOURED, 11: -100.0}},
)


def request(
    number: int, prompt_ids: Sequence[int], tokens: int = TOKENS, **sampling: Any
) -> Request:
    """One with all log-probabilities, that EOS does not end. sampling: fields of SamplingParams."""
    chosen = {"seed": 1000 + number, "max_tokens": tokens, "logprobs": VOCAB, "ignore_eos": True}
    return Request(number, prompt_ids, SamplingParams(**{**chosen, **sampling}))


def traffic(count: int, tokens: int = TOKENS) -> list[Request]:
    """`count` requests with ids from 0; no two prompts begin alike."""
    return [
        request(n, prompt(LENGTHS[n % len(LENGTHS)], salt=n), tokens, **CHOICES[n // 2 % 4])
        for n in range(count)
    ]


def alike(count: int, shared: int, tokens: int = TOKENS) -> list[Request]:
    """`count` requests whose prompts share their first `shared` tokens, and end differently."""
    return [
        request(n, [*prompt(shared), *prompt(3 + n, salt=n)], tokens, **CHOICES[n % 4])
        for n in range(count)
    ]


def prompts_of(length: int, count: int, tokens: int) -> list[Request]:
    """`count` requests with prompts of `length` and a few tokens less; the last have penalties."""
    return [
        request(n, prompt(length - n % 3, salt=n), tokens, **CHOICES[(n + 2) % 4])
        for n in range(count)
    ]


def resumed(requests: Iterable[Request], output_ids: Iterable[Sequence[int]]) -> list[Request]:
    """The same requests, to go on behind what an earlier attempt gave."""
    return [
        replace(each, output_ids=ids, attempt=1)
        for each, ids in zip(requests, output_ids, strict=True)
    ]
