"""The router without processes: limits, metrics, and streams with odd readers."""

import asyncio
import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.engine.request import FinishReason
from infercore.errors import (
    EngineUnavailable,
    GenerationFailed,
    InferCoreError,
    InvalidRequest,
    Overloaded,
    TemplateError,
)
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.engine_client import EnginePhase
from infercore_api.router.openai_schema import ChatBody, CompletionBody
from infercore_api.router.problems import problem_of
from infercore_api.router.tgi_schema import Parameters
from memory_engine import MemoryEngine
from memory_router import Router

HELLO = [260, 553]  # " a", " time"


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


def generate(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "Once upon", "parameters": {"max_new_tokens": 2, **parameters}}


async def test_more_than_the_permits_is_refused_and_counted(texts: Any) -> None:
    router = Router(texts, MemoryEngine(), max_concurrent_requests=1)
    first = asyncio.create_task(router.http.post("/generate", json=generate()))
    await router.engine.arrived.wait()
    second = await router.http.post("/generate", json=generate())
    assert second.status_code == 429
    assert second.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert int(second.headers["retry-after"]) >= 1
    router.engine.say(1, HELLO, FinishReason.LENGTH)
    assert (await first).status_code == 200
    metrics = router.metrics()
    assert metrics["infercore_requests_started_total", ""] == 2
    assert metrics["infercore_requests_total", "success"] == 1
    assert metrics["infercore_requests_total", "failure"] == 1
    assert metrics["tgi_request_failure", "overloaded"] == 1
    assert metrics["infercore_requests_in_flight", ""] == 0


async def test_more_than_there_ever_is_is_no_overload(texts: Any) -> None:
    """A client would retry a 429 for ever."""
    router = Router(texts, MemoryEngine(HELLO), max_concurrent_requests=3)
    refused = await router.http.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2})
    assert refused.status_code == 400
    assert "at most 3" in refused.json()["error"]["message"]
    assert router.metrics()["tgi_request_failure", "validation"] == 1


async def test_cached_tokens_are_summed_over_prompts(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1}
    answer = asyncio.create_task(router.http.post("/v1/completions", json=body))
    await router.engine.arrived.wait()
    for request_id, cached in ((1, 0), (2, 16), (3, 32), (4, 32)):
        router.engine.say(request_id, [260], FinishReason.LENGTH, cached_tokens=cached)
    usage = (await answer).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 48}


async def test_metrics_count_what_was_done(texts: Any) -> None:
    router = Router(texts, MemoryEngine(HELLO))
    for _ in range(3):
        await router.http.post("/generate", json=generate())
    metrics = router.metrics()
    assert metrics["tgi_request_count", ""] == metrics["tgi_request_success", ""] == 3
    assert metrics["tgi_request_generated_tokens_sum", ""] == 6
    assert metrics["infercore_time_to_first_token_seconds_count", ""] == 3
    assert metrics["infercore_kv_usage_ratio", ""] == pytest.approx(1 / 3)
    assert metrics["infercore_steps_total", ""] == 7
    assert metrics["tgi_queue_size", ""] == 0


@pytest.mark.parametrize(
    ("error", "tgi_status", "error_type", "openai_status"),
    [
        (InvalidRequest("no", "top_p"), 422, "validation", 400),
        (TemplateError("no"), 422, "template_error", 400),
        (Overloaded("no", 7.0), 429, "overloaded", 429),
        (GenerationFailed("no"), 424, "generation", 500),
        (EngineUnavailable("no"), 503, "unavailable", 503),
        (InvalidRequest("no", "model"), 404, "validation", 404),
        (InferCoreError("/etc/secret"), 500, "incomplete_generation", 500),
    ],
)
def test_every_error_has_a_shape_in_both_dialects(
    error: Exception, tgi_status: int, error_type: str, openai_status: int
) -> None:
    problem = problem_of(error)
    flat, nested = json.loads(problem.body("/generate")), json.loads(problem.body("/v1/models"))
    assert (problem.status("/generate"), flat["error_type"]) == (tgi_status, error_type)
    assert problem.status("/v1/chat/completions") == openai_status
    assert nested["error"].keys() == {"message", "type", "param", "code"}
    assert "secret" not in str(flat) + str(nested)


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions"])
async def test_an_error_inside_a_stream_speaks_its_dialect(texts: Any, path: str) -> None:
    router = Router(texts, MemoryEngine())
    body = generate() if path != "/v1/completions" else {"prompt": "a", "stream": True}
    answer = asyncio.create_task(router.http.post(path, json=body))
    await router.engine.arrived.wait()
    router.engine.say(1, HELLO)
    await asyncio.sleep(0.05)
    router.engine.say(1, [], FinishReason.ERROR, GenerationFailed("request 1: NaN"))
    *_, last = [line for line in (await answer).text.splitlines() if line.startswith("data: {")]
    error = json.loads(last[6:])
    if path == "/generate_stream":
        assert error["error_type"] == "generation"
    else:
        assert error["error"]["code"] == "generation_failed"
        assert (await answer).text.endswith("data: [DONE]\n\n")
    assert router.metrics()["tgi_request_failure", "generation"] == 1


async def test_a_stop_text_ends_the_request_in_the_engine_too(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    body = generate(max_new_tokens=50, stop=[" time"])
    answer = asyncio.create_task(router.http.post("/generate", json=body))
    await router.engine.arrived.wait()
    router.engine.say(1, [*HELLO, 508, 346])
    assert (await answer).json()["generated_text"] == " a time"
    assert router.engine.aborted == [1]


async def _call(
    app: Any, body: dict[str, Any], send: Any, left: asyncio.Event | None = None
) -> None:
    """One POST to /generate_stream by hand, over the raw ASGI interface."""
    content = json.dumps(body).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if messages:
            return messages.pop()
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate_stream",
        "raw_path": b"/generate_stream",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("router", 80),
        "client": ("client", 1),
        "http_version": "1.1",
        "root_path": "",
        "app": app,
    }
    await app(scope, receive, send)


async def test_a_client_that_does_not_read_is_given_up(texts: Any) -> None:
    router = Router(texts, MemoryEngine(), write_timeout=0.2)
    stuck = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await stuck.wait()  # a full socket, which nobody empties

    call = asyncio.create_task(_call(router.app, generate(max_new_tokens=50), send))
    await router.engine.arrived.wait()
    for _ in range(5):
        router.engine.say(1, HELLO)  # the engine never waits
    await asyncio.wait_for(call, 10)
    assert router.engine.aborted == [1]
    assert router.metrics()["infercore_requests_total", "cancelled"] == 1


async def test_a_slow_reader_gets_every_event_in_order(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    sent: list[bytes] = []
    open_gate = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if len(sent) in (2, 5):  # the socket is full, in the middle of a burst
            await open_gate.wait()
            open_gate.clear()
        sent.append(message.get("body", b""))

    call = asyncio.create_task(_call(router.app, generate(max_new_tokens=50), send))
    await router.engine.arrived.wait()
    for step in range(12):
        router.engine.say(1, HELLO[:1])
        await asyncio.sleep(0.01)
        if step in (4, 9):
            open_gate.set()
    router.engine.say(1, HELLO[:1], FinishReason.LENGTH)
    open_gate.set()
    await asyncio.wait_for(call, 10)
    events = [json.loads(line[6:]) for line in b"".join(sent).splitlines() if line]
    assert [event["index"] for event in events] == list(range(1, 14))


async def test_a_client_whose_socket_breaks_is_one_that_left(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if len(sent) > 3:
            raise BrokenPipeError

    call = asyncio.create_task(_call(router.app, generate(max_new_tokens=50), send))
    await router.engine.arrived.wait()
    while not router.engine.aborted:
        router.engine.say(1, HELLO[:1])
        await asyncio.sleep(0.01)
    await asyncio.wait_for(call, 10)
    assert router.metrics()["infercore_requests_total", "cancelled"] == 1


async def test_a_silent_stream_is_kept_alive_with_comments(texts: Any) -> None:
    router = Router(texts, MemoryEngine(), keep_alive=0.05)
    sent: list[bytes] = []
    commented = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if sent[-1] == b":\n\n":
            commented.set()

    call = asyncio.create_task(_call(router.app, generate(max_new_tokens=50), send))
    await router.engine.arrived.wait()
    router.engine.say(1, HELLO)
    await commented.wait()
    router.engine.say(1, HELLO, FinishReason.LENGTH)
    await asyncio.wait_for(call, 10)
    assert b"".join(sent).count(b"data: ") == 4


async def test_a_client_that_leaves_aborts_its_request(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    left = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        del message

    call = asyncio.create_task(_call(router.app, generate(max_new_tokens=50), send, left))
    await router.engine.arrived.wait()
    router.engine.say(1, HELLO)
    left.set()
    await asyncio.wait_for(call, 10)
    assert router.engine.aborted == [1]


async def test_while_the_engine_loads_health_says_so(texts: Any) -> None:
    engine = MemoryEngine()
    engine.phase = EnginePhase.LOADING
    router = Router(texts, engine)
    for path in ("/health", "/health/ready", "/ping", "/"):
        health = await router.http.get(path)
        assert health.status_code == 503
        assert health.json()["phase"] == "loading"
    assert (await router.http.get("/health/live")).status_code == 200
    refused = await router.http.post("/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_unavailable"
    assert refused.headers["retry-after"] == "1"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 5)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))  # surrogates too
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
FIELDS = [
    *(("/generate", name) for name in Parameters.model_fields),
    *(("/generate_stream", name) for name in Parameters.model_fields),
    *(("/v1/chat/completions", name) for name in [*ChatBody.model_fields, *ChatBody.HARMLESS]),
    *(("/v1/completions", name) for name in CompletionBody.model_fields),
]


@pytest.fixture(scope="module")
def answering(texts: Any) -> Router:
    """One for many requests, which it answers at once."""
    return Router(texts, MemoryEngine(HELLO))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_no_value_of_any_field_is_the_servers_fault(
    answering: Router, field: tuple[str, str], value: Any
) -> None:
    path, name = field
    body: dict[str, Any] = {"prompt": "a", name: value}
    if path.startswith("/generate"):
        body = generate(**{name: value})
    elif path == "/v1/chat/completions":
        body = {"messages": [{"role": "user", "content": "a"}], name: value}
    content = json.dumps(body)  # NaN and halves of surrogate pairs included
    headers = {"content-type": "application/json"}
    response = asyncio.run(answering.http.post(path, content=content, headers=headers))
    assert response.status_code < 500, response.text
