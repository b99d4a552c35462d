"""Requests that hypothesis makes, against a real server: nothing is the server's fault.

`make test` sends a few hundred, `make check-all` ten thousand.
"""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzed_calls import Call, damaged_bytes, described_calls, expected_errors, operations
from http_bytes import Answer, answers_to
from processes import Server, eventually, serving

AT_ONCE = 8
FEW, MANY = 15, 650  # rounds of each kind; every round sends AT_ONCE requests
INSIDE = re.compile(r"Traceback|site-packages|/src/|\w\.py\b|object at 0x")
DIALECTS = ("FlatError", "NestedError", "AnthropicError")
FORWARDING = ("/invocations",)  # answers in the dialect of the path that the body asks for
DONE = "[DONE]"
LARGE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROUNDS = pytest.mark.parametrize("rounds", [FEW, pytest.param(MANY, marks=SLOW)])


class Target:
    """A server, and its document."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.document = httpx2.get(f"{server.url}/api-doc/openapi.json").json()
        self.calls = described_calls(self.document)
        self.pids = (server.engine.pid, server.router.pid)
        self.statuses: dict[int, int] = {}

    def check_error(self, body: Any, schemas: tuple[str, ...]) -> None:
        """It has the shape of one of these schemas, and gives nothing of the inside away."""
        names = [{"$ref": f"#/components/schemas/{name}"} for name in schemas]
        closed = {"anyOf": names, "components": self.document["components"]}
        jsonschema.validate(body, closed)
        inner = body["error"]
        said = inner if isinstance(inner, str) else inner["message"]
        assert said
        assert not INSIDE.search(said)

    def check_unharmed(self) -> None:
        """The same processes serve, and none of the requests is still there."""
        assert self.server.health() == 200
        assert (self.server.engine.pid, self.server.router.pid) == self.pids
        gauges = ("running_sequences", "waiting_sequences", "requests_in_flight")
        eventually(
            lambda: not any(self.server.metric(f"infercore_{each}") for each in gauges),
            30,
            "no request is left",
        )
        assert "Traceback" not in self.server.log.read_text()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Its answers are short, so that what sets no limit ends soon."""
    flags = ("--dtype", "float32", "--max-total-tokens", "48")
    with serving(tmp_path_factory.mktemp("fuzz"), *flags) as server:
        yield Target(server)
        assert server.end() == 0


def test_the_document_says_which_dialect_each_path_speaks(target: Target) -> None:
    for operation in operations(target.document):
        if operation.path != "/metrics":
            assert operation.errors == expected_errors(operation.path), operation.path


def test_whoever_leaves_within_a_body_does_no_harm(target: Target) -> None:
    posted = [each.path for each in operations(target.document) if each.body is not None]
    rest = "HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    answers_to(target.server.port, [f"POST {path} {rest}".encode() for path in posted], 0.5)
    target.check_unharmed()


@ROUNDS
def test_calls_by_the_document(target: Target, rounds: int) -> None:
    """Each is answered, whole, and refused in the dialect of its path."""

    @settings(max_examples=rounds, deadline=None, suppress_health_check=LARGE)
    @given(st.lists(target.calls, min_size=AT_ONCE, max_size=AT_ONCE))
    def send(calls: list[Call]) -> None:
        answers = answers_to(target.server.port, [call.encode() for call in calls], 60)
        for call, answer in zip(calls, answers, strict=True):
            check_answer(target, call, Answer.parse(answer, call.method))

    send()
    target.check_unharmed()
    assert target.statuses[200] > rounds  # many get through


@ROUNDS
def test_bytes_that_are_hardly_requests(target: Target, rounds: int) -> None:
    """Whatever is answered is well-formed, and no fault of the server's."""

    @settings(max_examples=rounds, deadline=None, suppress_health_check=LARGE)
    @given(st.lists(damaged_bytes(target.calls), min_size=AT_ONCE, max_size=AT_ONCE))
    def send(requests: list[bytes]) -> None:
        # who waits for the rest of a request is not waited for
        for answer in answers_to(target.server.port, requests, 0.5):
            check_bytes(target, answer)

    send()
    target.check_unharmed()


def check_answer(target: Target, call: Call, answer: Answer) -> None:
    """The answer to a well-formed call: a status below 500, and the shape of its path."""
    target.statuses[answer.status] = target.statuses.get(answer.status, 0) + 1
    assert answer.status < 500, answer.content
    path = call.path.partition("?")[0]
    schemas = DIALECTS if path in FORWARDING else (call.errors or "FlatError",)
    assert answer.headers["x-request-id"]
    if call.method == "HEAD":
        return
    if answer.status >= 400:
        assert answer.kind == "application/json"
        target.check_error(answer.json(), schemas)
    elif answer.kind == "text/event-stream":
        check_stream(target, path, answer, schemas)
    elif answer.kind == "application/json":
        answer.json()


def check_stream(target: Target, path: str, answer: Answer, schemas: tuple[str, ...]) -> None:
    """Events of one line; errors in the dialect; an end as the dialect has it."""
    events = answer.events()
    assert events
    if path not in FORWARDING:
        assert (events[-1] == DONE) == (schemas == ("NestedError",))
    for data in events[: -1 if events[-1] == DONE else None]:
        event = Answer(200, {}, data.encode()).json()
        if event.get("error"):
            target.check_error(event, schemas)


def check_bytes(target: Target, data: bytes) -> None:
    """What may have been cut by our own leaving: the statuses, and an error that came whole."""
    assert not re.search(rb"^HTTP/1\.[01] 5\d\d", data, re.MULTILINE), data
    if not data:
        return
    assert data.startswith(b"HTTP/1.1 "), data
    head, _, content = data.partition(b"\r\n\r\n")
    refused = re.match(rb"HTTP/1\.1 4\d\d", head) and b"application/json" in head
    length = re.search(rb"content-length: (\d+)", head)
    if refused and length and len(content) == int(length[1]):
        target.check_error(Answer(400, {}, content).json(), DIALECTS)
