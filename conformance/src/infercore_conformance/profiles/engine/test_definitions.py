"""What is served, against the definitions: of the model, of sampling, of log-probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from infercore.engine.request import Request, TokenLogprobs
from infercore_conformance import Feature, Level, check
from infercore_conformance.engine_answers import Answers, open_below, scores
from infercore_conformance.engine_fixtures import Serve
from infercore_conformance.engine_serving import TOGETHER
from infercore_conformance.engine_traffic import request, traffic
from infercore_conformance.fixtures import Models, Numerics
from infercore_conformance.models import VOCAB
from infercore_conformance.reference import Reference
from infercore_conformance.running import open_model
from infercore_conformance.steps import prompt
from infercore_conformance.tolerances import logprobs_bound

ROUNDING = 1e-5  # of a float32 log-probability, against the logit that it stands for


@check("engine.reference.models", "Log-probabilities are those that the model's definition gives.")
def test_the_reference(serve: Serve, architecture: str, models: Models, numerics: Numerics) -> None:
    """At every token of every answer, against a decoder that knows no cache, batch or padding."""
    serving, requests = serve(architecture), traffic(8)
    found = serving.answers(requests, TOGETHER)
    difference = _from_reference(models(architecture), requests, found)
    numerics.record("logprobs_max_abs", difference, logprobs_bound(serving.config.dtype))


@check("engine.reference.dtypes", "In every declared dtype, log-probabilities are near.")
def test_the_reference_in_every_dtype(
    serve: Serve, dtype: str, models: Models, numerics: Numerics
) -> None:
    """A dtype that is declared and computed in a coarser one, or summed in itself, shows here."""
    serving, requests = serve(dtype=dtype, kv_dtype=dtype), traffic(8)
    found = serving.answers(requests, TOGETHER)
    difference = _from_reference(models(), requests, found)
    numerics.record(f"logprobs_max_abs_{dtype}", difference, logprobs_bound(dtype))


@check("engine.choice", "Every token is the one that the definition of sampling chooses.")
def test_choices(serve: Serve, architecture: str, numerics: Numerics) -> None:
    """From the log-probabilities that came with it: greedy and seeded, biased and penalized.

    Noise depends on seed, position and token id alone; penalties count what the request had.
    """
    serving, requests = serve(architecture), traffic(10)
    answers = serving.answers(requests, TOGETHER)
    for each in requests:
        answer, open_score = answers[each.request_id], open_below(each, ROUNDING)
        for place, token in enumerate(answer.tokens):
            own = scores(each, answer, place)
            numerics.record("score_below_the_best", float(own.max() - own[token]), open_score)


@check("engine.logprobs", "A request gets as many log-probabilities as it asks for, whoever else.")
def test_numbers_of_logprobs(serve: Serve, numerics: Numerics) -> None:
    """Rows of one step ask for none, for the choice's own, for a few and for all."""
    serving = serve()
    wanted = [None, 0, 3, VOCAB]
    requests = [
        request(n, prompt(9), logprobs=count, temperature=0.0) for n, count in enumerate(wanted)
    ]
    answers = serving.answers(requests, TOGETHER)
    assert answers[0].logprobs == [], "a request that wants none got some"
    tokens = answers[0].tokens
    for each, count in zip(requests[1:], (0, 3, VOCAB), strict=True):
        answer = answers[each.request_id]
        assert answer.tokens == tokens
        assert [len(at.top_ids) for at in answer.logprobs] == [count] * len(tokens)
        difference = _largest(answer.logprobs, answers[3].logprobs)
        numerics.record("logprob_max_abs", difference, logprobs_bound(serving.config.dtype))


@check(
    "engine.prompt_logprobs",
    "A prompt's log-probabilities do not depend on its chunks, nor on the other rows.",
    level=Level.EXTENDED,
    needs=Feature("prompt_logprobs"),
)
def test_prompt_logprobs(serve: Serve, architecture: str, numerics: Numerics) -> None:
    """Of every token but the first, given those before it; a chunk's last token has the next's."""
    serving = serve(architecture)
    prompts = [prompt(length, salt=length) for length in (40, 17, 2, 1)]
    requests = [request(n, ids, 1, prompt_logprobs=2) for n, ids in enumerate(prompts)]
    whole = serving.answers(requests)
    parts = serving.answers(requests, replace(TOGETHER, tokens=7))
    for each in requests:
        one, other = (answers[each.request_id].prompt_logprobs for answers in (whole, parts))
        assert one is not None
        assert other is not None
        assert one[0] is None, "nothing is before the first token"
        assert len(one) == len(other) == len(each.prompt_ids)
        difference = _largest(one[1:], other[1:])
        numerics.record("logprob_max_abs", difference, logprobs_bound(serving.config.dtype))


def _from_reference(folder: Path, requests: Sequence[Request], found: Answers) -> float:
    """The largest |difference| of a log-probability, under the text that was answered."""
    model = Reference(*open_model(folder))
    differences = []
    for each in requests:
        answer = found[each.request_id]
        ids = [*each.prompt_ids, *answer.tokens[:-1]]
        expected = model.logprobs(ids)[len(each.prompt_ids) - 1 :]
        differences.append(float(np.abs(expected - answer.distributions()).max()))
    return max(differences)


def _largest(one: Sequence[TokenLogprobs | None], other: Sequence[TokenLogprobs | None]) -> float:
    """The largest |difference| of the tokens' own log-probabilities; 0 of none."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    assert len(pairs) == len(one), "a position has no log-probability"
    return max((abs(a.logprob - b.logprob) for a, b in pairs), default=0.0)
