"""`/v1/responses` through OpenAI's own client, against a server and against a script."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from infercore.engine.request import FinishReason
from infercore.errors import GenerationFailed
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
PATH = "/v1/responses"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


def test_a_response(client: openai.OpenAI) -> None:
    done = client.responses.create(
        model="infercore/demo", input=QUESTION, temperature=0, max_output_tokens=32, store=False
    )
    assert done.output_text == ANSWER
    assert (done.status, done.object, done.error, done.model) == (
        "completed", "response", None, "infercore/demo",
    )  # fmt: skip
    (item,) = done.output
    assert item.to_dict()["status"] == "completed"
    assert done.id.startswith("resp_")
    assert (done.tools, done.tool_choice, done.parallel_tool_calls) == ([], "auto", True)
    usage = done.usage
    assert usage is not None
    assert usage.output_tokens == 8
    assert usage.total_tokens == usage.input_tokens + 8
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert usage.input_tokens_details.cached_tokens >= 0


def test_the_clients_own_sum_of_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="", input=QUESTION, temperature=0, max_output_tokens=32
    ) as stream:
        events = list(stream)
        done = stream.get_final_response()
    assert done.output_text == ANSWER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER


def test_the_events_of_a_stream_come_in_order(client: openai.OpenAI) -> None:
    stream = client.responses.create(
        model="tgi", input=QUESTION, temperature=0, max_output_tokens=3, stream=True
    )
    names = [event.type.removeprefix("response.") for event in stream]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]


def test_what_is_cut_says_so(client: openai.OpenAI) -> None:
    cut = client.responses.create(model="", input=QUESTION, temperature=0, max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_is_sent_again_with_its_output(client: openai.OpenAI) -> None:
    first = client.responses.create(model="", input=QUESTION, temperature=0, max_output_tokens=32)
    again: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *(item.to_dict() for item in first.output),
        {"type": "message", "role": "user", "content": "What is the capital of France?"},
    ]
    second = client.responses.create(model="", input=again, temperature=0, max_output_tokens=32)
    assert second.output_text
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + 8


def test_instructions_are_the_systems_message(client: openai.OpenAI) -> None:
    given: Any = {"model": "", "temperature": 0, "max_output_tokens": 1}
    told = client.responses.create(input=QUESTION, instructions="Be brief.", **given)
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    same = client.responses.create(input=messages, **given)
    assert told.usage is not None
    assert same.usage is not None
    assert told.usage.input_tokens == same.usage.input_tokens
    assert (told.instructions, same.instructions) == ("Be brief.", None)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "json_object"}}}, "format"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": ""}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": "word " * 700}, "input"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_names_its_field(
    client: openai.OpenAI, changes: dict[str, Any], param: str, stream: bool
) -> None:
    create: Any = client.responses.create
    with pytest.raises(openai.BadRequestError) as refused:
        create(**{"model": "", "input": QUESTION, "stream": stream, **changes})
    assert (refused.value.param or "").startswith(param)


def test_a_model_that_is_not_served_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input=QUESTION)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


@pytest.mark.parametrize(
    "harmless",
    [
        {"text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {"effort": "low"}},
        {"tools": [], "tool_choice": "auto", "include": [], "truncation": "disabled"},
        {"metadata": {"a": "b"}, "stream_options": {"include_obfuscation": False}},
        {"top_logprobs": None, "previous_response_id": None, "max_tool_calls": 3},
    ],
)
async def test_what_changes_nothing_is_taken(texts: Any, harmless: dict[str, Any]) -> None:
    router = Router(texts, MemoryEngine([260, 553]))
    answer = await router.http.post(PATH, json={"input": "a", **harmless})
    assert answer.json()["output"][0]["content"][0]["text"] == " a time"


async def test_a_stream_that_fails_says_so_twice(texts: Any) -> None:
    """As an event for those who read events, and as the error that the client raises."""
    router = Router(texts, MemoryEngine())
    call = asyncio.create_task(router.http.post(PATH, json={"input": "a", "stream": True}))
    await router.engine.arrived.wait()
    router.engine.say(1, [260])
    await asyncio.sleep(0.05)
    router.engine.say(1, [], FinishReason.ERROR, GenerationFailed("request 1: NaN"))
    lines = [line[6:] for line in (await call).text.splitlines() if line.startswith("data: ")]
    failed, error, done = lines[-3:]
    assert json.loads(failed)["type"] == "response.failed"
    assert json.loads(failed)["response"]["error"]["message"] == "request 1: NaN"
    assert json.loads(error)["error"]["code"] == "generation_failed"
    assert done == "[DONE]"
