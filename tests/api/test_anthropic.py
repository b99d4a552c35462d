"""Anthropic's routes through Anthropic's own client, against a server and against a script."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from infercore.engine.request import FinishReason
from infercore.errors import EngineUnavailable, GenerationFailed, InvalidRequest, Overloaded
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.problems import problem_of
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server

MODEL = "infercore/demo"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
PATH = "/v1/messages"
GREEDY = {"temperature": 0}  # which newer clients leave to the body
BODY = {"model": MODEL, "max_tokens": 9, "messages": QUESTION}


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


# --- the client, and a server ---------------------------------------------------------------------


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=32, messages=QUESTION, extra_body=GREEDY, metadata={"user_id": "u"}
    )
    (block,) = message.content
    assert (message.role, message.type) == ("assistant", "message")
    assert block.to_dict() == {"type": "text", "text": ANSWER}
    assert (message.model, message.stop_reason, message.stop_sequence) == (MODEL, "end_turn", None)
    assert message.id.startswith("msg_")
    assert message._request_id
    assert message.usage.output_tokens == 8
    cached = message.usage.cache_read_input_tokens or 0
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert message.usage.input_tokens + cached == counted.input_tokens


def test_a_streamed_message_adds_up(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="", max_tokens=32, messages=QUESTION, extra_body=GREEDY
    ) as stream:
        assert "".join(stream.text_stream) == ANSWER
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 8)
    assert message.content[0].to_dict() == {"type": "text", "text": ANSWER}


def test_the_events_of_a_stream_come_in_order(client: anthropic.Anthropic) -> None:
    events = client.messages.create(
        model=MODEL, max_tokens=3, messages=QUESTION, extra_body=GREEDY, stream=True
    )
    names = [event.type for event in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_why_a_message_ended(client: anthropic.Anthropic) -> None:
    def ask(**changes: Any) -> anthropic.types.Message:
        given = {"model": MODEL, "max_tokens": 32, "messages": QUESTION, "extra_body": GREEDY}
        message: anthropic.types.Message = client.messages.create(**{**given, **changes})
        return message

    short = ask(max_tokens=3)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    stopped = ask(stop_sequences=["nowhere", " France"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " France")
    assert stopped.content[0].to_dict()["text"] == "The capital of"
    assert ask(max_tokens=16_000).stop_reason == "end_turn", "more than the model has room for"


async def test_the_client_without_waiting(server: Server) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=server.url, api_key="-") as client,
        client.messages.stream(
            model=MODEL, max_tokens=32, messages=QUESTION, extra_body=GREEDY
        ) as stream,
    ):
        parts = [text async for text in stream.text_stream]
    assert "".join(parts) == ANSWER


def test_systems_blocks_and_begun_answers(client: anthropic.Anthropic) -> None:
    blocks: Any = [
        {"role": "user", "content": [
            {"type": "text", "text": "What is the ", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "capital of France?"},
        ]},
        {"role": "assistant", "content": "The capital of France"},
    ]  # fmt: skip
    message = client.messages.create(
        model=MODEL, max_tokens=32, messages=blocks, extra_body=GREEDY, tools=[]
    )
    assert message.content[0].to_dict()["text"] == " is Paris."
    plain = client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens
    for system in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        told: Any = {"model": MODEL, "messages": QUESTION, "system": system}
        assert client.messages.count_tokens(**told).input_tokens > plain


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "not served here"),
        ({"extra_body": {"temperature": -1.0}}, anthropic.BadRequestError, "temperature"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "`max_tokens`"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, anthropic.BadRequestError, "`tools`"),
        ({"thinking": {"type": "adaptive"}}, anthropic.BadRequestError, "`thinking`"),
        ({"messages": []}, anthropic.BadRequestError, "`messages`"),
        ({"stop_sequences": list("abcde")}, anthropic.BadRequestError, "`stop_sequences`"),
        ({"extra_body": {"unheard_of": 1}}, anthropic.BadRequestError, "`unheard_of`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "`messages.0.content.0.type`",
        ),
        (
            {"messages": [{"role": "user", "content": "word " * 700}]},
            anthropic.BadRequestError,
            "`messages` must have less than 599 tokens",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_clients_own_errors(
    client: anthropic.Anthropic, changes: dict[str, Any], error: Any, says: str, stream: bool
) -> None:
    given = {"model": MODEL, "max_tokens": 9, "messages": QUESTION, "stream": stream, **changes}
    create: Any = client.messages.create
    with pytest.raises(error) as refused:
        create(**given)
    body = refused.value.body
    assert body.keys() == {"type", "error"}
    assert body["error"].keys() == {"type", "message"}
    assert says in body["error"]["message"]


def test_models(client: anthropic.Anthropic) -> None:
    page = client.models.list()
    assert [model.id for model in page.data] == [MODEL]
    assert not page.has_next_page()
    model = client.models.retrieve(MODEL)
    assert (model.type, model.display_name) == ("model", MODEL)
    assert model.created_at.tzinfo is not None


# --- the dialect, over a script -------------------------------------------------------------------


async def test_turns_of_one_side_are_one(texts: Any) -> None:
    router = Router(texts, MemoryEngine([260, 553]))
    said = [{"role": "user", "content": "Hello"}, {"role": "user", "content": " there"}]
    joined = [{"role": "user", "content": "Hello there"}]
    counts = []
    for messages in (said, joined):
        body = {"model": MODEL, "messages": messages, "system": "Be brief."}
        answer = await router.http.post(f"{PATH}/count_tokens?beta=true", json=body)
        counts.append(answer.json()["input_tokens"])
    assert counts[0] == counts[1]


async def test_usage_tells_what_was_found_in_the_cache(texts: Any) -> None:
    for stream in (False, True):
        router = Router(texts, MemoryEngine())
        body = {**BODY, "stream": stream}
        call = asyncio.create_task(router.http.post(PATH, json=body))
        await router.engine.arrived.wait()
        router.engine.say(1, [260], cached_tokens=5)
        router.engine.say(1, [553], FinishReason.EOS)
        answer = await call
        usages = usages_of(answer) if stream else [answer.json()["usage"]]
        prompt = len(router.engine.requests[1].prompt_ids)
        for usage in usages:
            assert usage["cache_read_input_tokens"] == 5
            assert usage["input_tokens"] == prompt - 5
        assert usages[-1]["output_tokens"] == 2


def usages_of(answer: httpx2.Response) -> list[dict[str, int]]:
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data")]
    assert events[0]["type"] == "message_start"
    assert events[-2]["type"] == "message_delta"
    return [events[0]["message"]["usage"], events[-2]["usage"]]


async def test_a_context_that_ends_first_is_told(texts: Any) -> None:
    router = Router(texts, MemoryEngine([260, 553]))  # it ends for length at once
    for most, reason in ((9, "model_context_window_exceeded"), (2, "max_tokens")):
        answer = await router.http.post(PATH, json={**BODY, "max_tokens": most})
        assert answer.json()["stop_reason"] == reason
    await router.http.post(PATH, json={**BODY, "max_tokens": 10**9})
    request = router.engine.requests[3]
    assert request.sampling.max_tokens == 512 - len(request.prompt_ids)


async def test_an_end_without_a_token_ends_the_stream_as_well(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    call = asyncio.create_task(router.http.post(PATH, json={**BODY, "stream": True}))
    await router.engine.arrived.wait()
    router.engine.say(1, [260])
    router.engine.say(1, [], FinishReason.EOS)
    names = [line[7:] for line in (await call).text.splitlines() if line.startswith("event: ")]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_a_stream_that_fails_ends_with_a_named_error(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    call = asyncio.create_task(router.http.post(PATH, json={**BODY, "stream": True}))
    await router.engine.arrived.wait()
    router.engine.say(1, [260])
    await asyncio.sleep(0.05)
    router.engine.say(1, [], FinishReason.ERROR, GenerationFailed("request 1: NaN"))
    *_, name, data = (await call).text.strip().splitlines()
    assert name == "event: error"
    assert json.loads(data[6:]) == {
        "type": "error", "error": {"type": "api_error", "message": "request 1: NaN"},
    }  # fmt: skip
    assert "[DONE]" not in (await call).text


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("no", "top_p"), 400, "invalid_request_error"),
        (InvalidRequest("no", "model"), 404, "not_found_error"),
        (Overloaded("no", 7.0), 429, "rate_limit_error"),
        (GenerationFailed("no"), 500, "api_error"),
        (EngineUnavailable("no"), 503, "api_error"),
        (RuntimeError("/etc/secret"), 500, "api_error"),
    ],
)
def test_every_error_has_anthropics_shape(error: Exception, status: int, kind: str) -> None:
    problem = problem_of(error)
    assert problem.status(PATH) == status
    body = json.loads(problem.body(f"{PATH}/count_tokens"))
    assert body["error"]["type"] == kind
    assert "secret" not in str(body)


async def test_what_is_refused_before_the_route_has_that_shape_too(texts: Any) -> None:
    router = Router(texts, MemoryEngine([260]), api_keys=("k",))
    key = {"x-api-key": "k"}
    unkeyed = await router.http.post(PATH, json=BODY)
    form = await router.http.post(PATH, content=b"a=b", headers=key)
    large = await router.http.post(PATH, json={"a": "b" * 2_000_001}, headers=key)
    method = await router.http.get(PATH, headers=key)
    broken = await router.http.post(
        PATH, content=b"{", headers={**key, "content-type": "application/json"}
    )
    nowhere = await router.http.post(f"{PATH}/nowhere", json=BODY, headers=key)
    for answer, status, kind in (
        (unkeyed, 401, "authentication_error"),
        (form, 415, "invalid_request_error"),
        (large, 413, "request_too_large"),
        (method, 405, "invalid_request_error"),
        (broken, 400, "invalid_request_error"),
        (nowhere, 404, "not_found_error"),
    ):
        assert answer.status_code == status
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == kind
