"""What the checks of the profile "http" ask for, beside the suite's own fixtures.

host        keeps the one server of the session, and knows its model
server      that server, ready; a new one where a check ended it
offline     offline(prompt, **sampling): what `LLM.generate` gives on the same backend and model
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest

from infercore.llm import LLM, Completion
from infercore.sampling import SamplingParams
from infercore_conformance.http_server import Host, ServerProcess
from infercore_conformance.subject import Subject

Offline: TypeAlias = Callable[..., Completion]


@pytest.fixture(scope="session")
def host(subject: Subject) -> Iterator[Host]:
    made = Host(subject)
    yield made
    made.close()


@pytest.fixture
def server(host: Host) -> ServerProcess:
    return host.server()


@pytest.fixture(scope="session")
def _llm(host: Host) -> Iterator[LLM]:
    with LLM(host.model, **host.options()) as llm:
        yield llm


@pytest.fixture
def offline(_llm: LLM) -> Offline:
    """In this process, each prompt alone."""

    def generate(prompt: str | Sequence[int], **sampling: Any) -> Completion:
        [completion] = _llm.generate([prompt], SamplingParams(**sampling), progress=False)
        return completion

    return generate
