"""What users of openai's SDK do; both living major versions can do all of it."""

from functools import partial
from typing import Any

import openai

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"
MODEL = "infercore/demo"
GREEDY: Any = {"temperature": 0, "max_tokens": 32}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)


def chat(url: str) -> None:
    done = _client(url).chat.completions.create(
        model=MODEL, messages=QUESTION, max_completion_tokens=32, temperature=0, logprobs=True,
        top_logprobs=2, n=2, seed=1, stop=["\n"], presence_penalty=0, frequency_penalty=0,
        logit_bias={}, user="me", metadata={"a": "b"}, store=False, parallel_tool_calls=True,
    )  # fmt: skip
    assert [choice.message.content for choice in done.choices] == [ANSWER] * 2
    assert [choice.finish_reason for choice in done.choices] == ["stop"] * 2
    assert (done.object, done.model) == ("chat.completion", MODEL)
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + 16
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    spelt = b"".join(bytes(token.bytes or []) for token in logprobs.content[:-1])
    assert spelt.decode() == ANSWER


def chat_by_developer_in_parts(url: str) -> None:
    parts: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Answer briefly."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
    ]
    done = _client(url).chat.completions.create(model=MODEL, messages=parts, **GREEDY)
    assert done.choices[0].message.content


def chat_streamed(url: str) -> None:
    stream = _client(url).chat.completions.create(
        model="", messages=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = stream
    assert len({(chunk.id, chunk.created) for chunk in (*chunks, last)}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 8


def chat_added_up_by_the_helper(url: str) -> None:
    with _client(url).chat.completions.stream(model=MODEL, messages=QUESTION, **GREEDY) as stream:
        done = stream.until_done().get_final_completion()
    assert done.choices[0].message.content == ANSWER


def completions(url: str) -> None:
    client = _client(url)
    done = client.completions.create(
        model=MODEL, prompt=[STORY, "Hello"], max_tokens=6, temperature=0, echo=True, logprobs=2,
        best_of=1, n=1, seed=3,
    )  # fmt: skip
    assert [choice.text[:5] for choice in done.choices] == ["Once ", "Hello"]
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == done.choices[0].text
    streamed = client.completions.create(
        model=MODEL, prompt=STORY, max_tokens=6, temperature=0, stream=True
    )
    assert STORY + "".join(chunk.choices[0].text for chunk in streamed) == done.choices[0].text
    best = client.completions.create(model=MODEL, prompt=STORY, max_tokens=4, best_of=3, n=2)
    assert len(best.choices) == 2


def responses(url: str) -> None:
    client = _client(url)
    done = client.responses.create(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=32
    )
    assert (done.status, done.output_text) == ("completed", ANSWER)
    assert done.usage is not None
    assert done.usage.output_tokens == 8
    events = list(
        client.responses.create(
            model=MODEL, input="What is the capital of France?", temperature=0, stream=True
        )
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "response.completed"
    with client.responses.stream(model=MODEL, input="Hello!", temperature=0) as stream:
        assert stream.get_final_response().output_text


def models(url: str) -> None:
    client = _client(url)
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).id == MODEL


def request_ids(url: str) -> None:
    raw = _client(url).chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, extra_headers={"x-request-id": "mine"}, **GREEDY
    )
    assert raw.headers["x-request-id"] == "mine"
    assert _client(url).models.list()._request_id


def refusals_have_types(url: str) -> None:
    client = _client(url)
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    calls: tuple[tuple[str | None, type[openai.APIStatusError], Any], ...] = (
        ("model", openai.NotFoundError, {"model": "gpt-unknown"}),
        ("temperature", openai.BadRequestError, {"temperature": -1}),
        ("tools", openai.BadRequestError, {"tools": [TOOL]}),
        ("response_format", openai.BadRequestError, {"response_format": form}),
        ("n", openai.BadRequestError, {"n": 1000}),
        ("unheard_of", openai.BadRequestError, {"extra_body": {"unheard_of": 1}}),
    )
    for param, kind, changes in calls:
        given: Any = {"model": MODEL, "messages": QUESTION, **changes}
        error = _refusal(kind, partial(client.chat.completions.create, **given))
        assert error.param == param
        assert error.request_id


def what_is_not_served_is_404(url: str) -> None:
    call = partial(_client(url).embeddings.create, model=MODEL, input="a")
    assert _refusal(openai.NotFoundError, call).code == "not_found"


async def asynchronously(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client:
        stream = await client.chat.completions.create(
            model="dummy", messages=QUESTION, stream=True, **GREEDY
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        done = await client.completions.create(model=MODEL, prompt=STORY, max_tokens=4)
    assert "".join(parts) == ANSWER
    assert done.choices[0].finish_reason == "length"


def _refusal(kind: Any, call: Any) -> Any:
    """The error that the call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was answered")
