"""The clients that people have, unmodified, against the real server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

from processes import Server

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"


@pytest.fixture
def hub(server: Server) -> Iterator[InferenceClient]:
    with InferenceClient(base_url=server.url) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as opened:
        yield opened


# --- huggingface_hub -----------------------------------------------------------------------------


def test_hub_text_generation(hub: InferenceClient) -> None:
    plain = hub.text_generation(STORY, max_new_tokens=8)
    detailed = hub.text_generation(
        STORY, max_new_tokens=8, details=True, decoder_input_details=True, top_n_tokens=2
    )
    assert detailed.generated_text == plain
    details = detailed.details
    assert details is not None
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 8, None)
    assert STORY + "".join(token.text for token in details.tokens) == plain
    assert all(token.logprob <= 0 and not token.special for token in details.tokens)
    assert [token.text for token in details.prefill] == ["Once", " upon", " a", " time"]
    assert details.top_tokens is not None
    likeliest: Any = details.top_tokens  # the library leaves its lists of lists as they came
    assert [top[0]["id"] for top in likeliest] == [token.id for token in details.tokens]


def test_hub_text_generation_streams(hub: InferenceClient) -> None:
    plain = hub.text_generation(STORY, max_new_tokens=8)
    assert STORY + "".join(hub.text_generation(STORY, max_new_tokens=8, stream=True)) == plain
    events = list(hub.text_generation(STORY, max_new_tokens=8, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, 9))
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].generated_text == plain
    assert events[-1].details is not None
    assert events[-1].details.input_length == 4


def test_hub_sampling_and_best_of(hub: InferenceClient) -> None:
    def draw(seed: int) -> str:
        return hub.text_generation(
            STORY, max_new_tokens=16, do_sample=True, temperature=1.5, top_k=50, top_p=0.95,
            typical_p=0.98, repetition_penalty=1.1, seed=seed,
        )  # fmt: skip

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1
    best = hub.text_generation(STORY, max_new_tokens=5, do_sample=True, best_of=3, details=True)
    assert best.details is not None
    assert best.details.best_of_sequences is not None
    assert len(best.details.best_of_sequences) == 2


def test_hub_chat(hub: InferenceClient) -> None:
    done = hub.chat_completion(QUESTION, max_tokens=32, temperature=0)
    assert done.choices[0].message.content == ANSWER
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens == 8
    chunks = list(hub.chat_completion(QUESTION, max_tokens=32, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_hub_async(server: Server) -> None:
    async with AsyncInferenceClient(base_url=server.url) as hub:
        text = await hub.text_generation(STORY, max_new_tokens=8)
        stream = await hub.text_generation(STORY, max_new_tokens=8, stream=True)
        assert STORY + "".join([part async for part in stream]) == text
        done = await hub.chat_completion(QUESTION, max_tokens=32, temperature=0)
    assert done.choices[0].message.content == ANSWER


def test_hub_errors_have_their_types(hub: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="must be <= 600"):
        hub.text_generation(STORY, max_new_tokens=5000)
    with pytest.raises(ValidationError, match="strictly positive"):
        next(iter(hub.text_generation(STORY, temperature=-1.0, stream=True)))


# --- openai --------------------------------------------------------------------------------------


def test_openai_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="infercore/demo", messages=QUESTION, max_completion_tokens=32, temperature=0,
        logprobs=True, top_logprobs=2, presence_penalty=0.0, top_p=1.0,
    )  # fmt: skip
    choice = done.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop"
    assert done.id.startswith("chatcmpl-")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + 8
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    spelt = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content[:-1])
    assert spelt.decode() == ANSWER
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_openai_chat_streams_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="", messages=QUESTION, max_tokens=32, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    *texts, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == ANSWER
    assert all(chunk.usage is None for chunk in texts)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 8


def test_openai_adds_up_what_it_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tgi", messages=QUESTION, n=2, temperature=0, max_tokens=32, logprobs=True
    ) as stream:
        done = stream.until_done().get_final_completion()
    for choice in done.choices:
        assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or ()) == 8


def test_openai_choices_stops_and_bias(client: openai.OpenAI) -> None:
    several = client.chat.completions.create(
        model="tgi", messages=QUESTION, n=3, seed=5, temperature=1.3, max_tokens=12
    )
    again = client.chat.completions.create(
        model="tgi", messages=QUESTION, n=3, seed=5, temperature=1.3, max_tokens=12
    )
    assert [c.index for c in several.choices] == [0, 1, 2]
    texts = [c.message.content for c in several.choices]
    assert texts == [c.message.content for c in again.choices]
    stopped = client.chat.completions.create(
        model="tgi", messages=QUESTION, stop=" France", temperature=0, max_tokens=32
    )
    assert stopped.choices[0].message.content == "The capital of"
    assert stopped.choices[0].finish_reason == "stop"
    by_id = client.completions.create(
        model="tgi", prompt=STORY, max_tokens=2, temperature=0, logit_bias={"300": 100}
    )
    assert by_id.choices[0].text
    assert by_id.usage is not None


def test_openai_completions(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="tgi", prompt=STORY, max_tokens=6, temperature=0)
    text = plain.choices[0].text
    assert plain.choices[0].finish_reason == "length"
    streamed = client.completions.create(
        model="tgi", prompt=STORY, max_tokens=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == text
    both = client.completions.create(
        model="tgi", prompt=[STORY, "Hello"], max_tokens=6, temperature=0, echo=True, logprobs=2
    )
    assert both.choices[0].text == STORY + text
    assert both.choices[1].text.startswith("Hello")
    logprobs = both.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    first: Any = logprobs.token_logprobs and logprobs.token_logprobs[0]
    assert "".join(logprobs.tokens) == STORY + text
    assert first is None  # nothing comes before it
    assert logprobs.text_offset == [
        sum(map(len, logprobs.tokens[:i])) for i in range(len(logprobs.tokens))
    ]
    ids = client.completions.create(
        model="tgi", prompt=[2243, 2063, 260, 553], max_tokens=6, temperature=0
    )
    assert ids.choices[0].text == text


async def test_openai_async(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        stream = await client.chat.completions.create(
            model="dummy", messages=QUESTION, temperature=0, stream=True, max_tokens=32
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == ANSWER


def test_openai_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "infercore/demo"
    assert client.models.retrieve("infercore/demo").id == model.id


def test_openai_errors_have_their_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-unknown", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as high:
        client.chat.completions.create(model="", messages=QUESTION, temperature=-1)
    assert high.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="", messages=QUESTION,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )  # fmt: skip
    assert tools.value.param == "tools"
