"""What users of Anthropic's SDK do."""

from functools import partial
from typing import Any

import anthropic

MODEL = "infercore/demo"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
TOOL: Any = {"name": "f", "input_schema": {"type": "object"}}


def _client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="-", max_retries=0)


def messages(url: str) -> None:
    done = _client(url).messages.create(
        model=MODEL, messages=QUESTION, max_tokens=32, extra_body={"temperature": 0}
    )
    (block,) = done.content
    assert block.type == "text"
    assert block.text == ANSWER
    assert (done.role, done.stop_reason, done.usage.output_tokens) == ("assistant", "end_turn", 8)
    stopped = _client(url).messages.create(
        model=MODEL, messages=QUESTION, max_tokens=32, stop_sequences=[" France"],
        extra_body={"temperature": 0},
    )  # fmt: skip
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " France")


def messages_streamed(url: str) -> None:
    client = _client(url)
    with client.messages.stream(
        model=MODEL, messages=QUESTION, max_tokens=32, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        done = stream.get_final_message()
    assert text == ANSWER
    assert done.stop_reason == "end_turn"
    events = client.messages.create(
        model=MODEL, messages=QUESTION, max_tokens=4, system="Be brief.", stream=True
    )
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip


def count_tokens(url: str) -> None:
    client = _client(url)
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    done = client.messages.create(model=MODEL, messages=QUESTION, max_tokens=1)
    cached = done.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == done.usage.input_tokens + cached


def models(url: str) -> None:
    assert [model.id for model in _client(url).models.list()] == [MODEL]
    assert _client(url).models.retrieve(MODEL).id == MODEL


def both_ways_to_bring_a_key(url: str) -> None:
    for keys in ({"api_key": "mine"}, {"auth_token": "mine"}):
        client = anthropic.Anthropic(base_url=url, **keys)  # type: ignore[arg-type]
        assert client.messages.create(model=MODEL, messages=QUESTION, max_tokens=1).content


def refusals_have_types(url: str) -> None:
    calls: tuple[tuple[type[anthropic.APIStatusError], dict[str, Any]], ...] = (
        (anthropic.NotFoundError, {"model": "claude-unknown"}),
        (anthropic.BadRequestError, {"tools": [TOOL]}),
        (anthropic.BadRequestError, {"extra_body": {"temperature": -1}}),
        (anthropic.BadRequestError, {"messages": []}),
    )
    for kind, changes in calls:
        given = {"model": MODEL, "messages": QUESTION, "max_tokens": 4, **changes}
        body = _refusal(kind, partial(_client(url).messages.create, **given)).body
        assert body["type"] == "error"
        assert body["error"]["message"]


async def asynchronously(url: str) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="-") as client,
        client.messages.stream(
            model=MODEL, messages=QUESTION, max_tokens=32, extra_body={"temperature": 0}
        ) as stream,
    ):
        assert await stream.get_final_text() == ANSWER


def _refusal(kind: Any, call: Any) -> Any:
    """The error that the call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was answered")
