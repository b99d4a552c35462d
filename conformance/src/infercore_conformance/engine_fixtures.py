"""What the checks of the profile "engine" ask for, beside the suite's own fixtures.

serve       serve("LlamaForCausalLM") → an executor with a tiny model, ready for engines
same        same(serving, requests, expected, found): the same answers, to rounding
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from infercore.engine.request import Request
from infercore_conformance.engine_answers import Answers, compare
from infercore_conformance.engine_serving import Serving
from infercore_conformance.fixtures import Models, Numerics
from infercore_conformance.subject import Subject
from infercore_conformance.tolerances import logprobs_bound

Serve: TypeAlias = Callable[..., Serving]
Same: TypeAlias = Callable[[Serving, Iterable[Request], Answers, Answers], None]


@pytest.fixture
def serve(subject: Subject, models: Models) -> Iterator[Serve]:
    """Of an architecture or a model folder, with ExecutorConfig's fields. Closed at the end."""
    started: list[Serving] = []

    def run(model: str | Path | None = None, **config: Any) -> Serving:
        folder = model if isinstance(model, Path) else models(model)
        started.append(Serving.start(subject, folder, **config))
        return started[-1]

    yield run
    for serving in started:
        serving.executor.shutdown()


@pytest.fixture
def same(numerics: Numerics) -> Same:
    """Records what differs; fails where rounding does not explain it."""

    def check(
        serving: Serving, requests: Iterable[Request], expected: Answers, found: Answers
    ) -> None:
        bound = logprobs_bound(serving.config.dtype)
        result = compare(requests, expected, found, bound)
        numerics.record("logprobs_max_abs", result.largest, bound)
        numerics.record("texts_parted_by_rounding", result.forks)
        assert not result.wrong, "; ".join(result.wrong[:3])

    return check
