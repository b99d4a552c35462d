"""What a check may ask for, by the name of an argument.

subject, capabilities   the backend under test, and what it declares
dtype, kv_dtype, block_size, architecture   each declared value in turn
models      models("LlamaForCausalLM", seed=1, num_hidden_layers=1) → a folder
running     an executor with a tiny model in it
start       start("MistralForCausalLM", dtype="bfloat16") → another one, closed after the check
numerics    numerics.record("logits_max_abs", value, bound)
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from infercore.capabilities import Capabilities
from infercore_conformance.models import config_of, served, write_model
from infercore_conformance.outcomes import Figure
from infercore_conformance.running import Running, config_for
from infercore_conformance.session import FIGURES
from infercore_conformance.subject import Subject

Models: TypeAlias = Callable[..., Path]
Start: TypeAlias = Callable[..., Running]


class Numerics:
    """Keeps what a check measures, for the report, and holds it against its bound."""

    def __init__(self, figures: list[Figure]) -> None:
        self._figures = figures

    def record(self, name: str, value: float, bound: float | None = None) -> None:
        """Report `value`; raises AssertionError if it is above `bound`, or not a number."""
        self._figures.append(Figure(name, float(value), bound))
        if bound is not None and (math.isnan(value) or value > bound):
            raise AssertionError(f"{name} is {value:.3g}, and at most {bound:.3g} is allowed")


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    session: Any = pytestconfig.pluginmanager.get_plugin("infercore_conformance_session")
    found: Subject = session.subject
    return found


@pytest.fixture(scope="session")
def capabilities(subject: Subject) -> Capabilities:
    return subject.capabilities


@pytest.fixture(scope="session")
def models(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Writes tiny models, each once. Without an architecture: the first one that is served."""
    written: dict[str, Path] = {}

    def model(architecture: str | None = None, *, seed: int = 0, **overrides: Any) -> Path:
        name = architecture or served(subject.capabilities.architectures)[0]
        key = repr((name, seed, sorted(overrides.items())))
        if key not in written:
            written[key] = tmp_path_factory.mktemp("model")
            write_model(written[key], config_of(name, **overrides), seed=seed)
        return written[key]

    return model


@pytest.fixture
def start(subject: Subject, models: Models) -> Iterator[Start]:
    """Starts executors: of an architecture or a model folder, with ExecutorConfig's fields."""
    started: list[Running] = []

    def run(model: str | Path | None = None, **config: Any) -> Running:
        folder = model if isinstance(model, Path) else models(model)
        started.append(Running.start(subject, folder, config_for(subject.capabilities, **config)))
        return started[-1]

    yield run
    for running in started:
        running.executor.shutdown()


@pytest.fixture
def running(start: Start) -> Running:
    return start()


@pytest.fixture
def numerics(request: pytest.FixtureRequest) -> Numerics:
    return Numerics(request.node.stash.setdefault(FIGURES, []))
