"""What users of huggingface_hub's inference clients do; every major version can do all of it."""

from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"
GRAMMAR: Any = {"type": "regex", "value": "a"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def text_by_base_url_model_and_v1(url: str) -> None:
    clients = (
        InferenceClient(base_url=url),
        InferenceClient(model=url),
        InferenceClient(base_url=f"{url}/v1"),
    )
    texts = {client.text_generation(STORY, max_new_tokens=8) for client in clients}
    (text,) = texts
    assert text.startswith(STORY)
    assert len(text) > len(STORY)


def text_with_details_and_every_parameter(url: str) -> None:
    done = InferenceClient(base_url=url).text_generation(
        STORY, details=True, decoder_input_details=True, top_n_tokens=2, stop=["\n\n"],
        truncate=3, typical_p=0.98, return_full_text=False, seed=7, repetition_penalty=1.1,
        frequency_penalty=0.1, top_k=50, top_p=0.95, temperature=0.7, do_sample=True,
        max_new_tokens=8, watermark=True,
    )  # fmt: skip
    details = done.details
    assert details is not None
    assert details.finish_reason in {"length", "eos_token", "stop_sequence"}
    assert details.generated_tokens == len(details.tokens) <= 8
    assert details.seed == 7
    assert len(details.prefill) == 3
    assert details.top_tokens is not None
    assert len(details.top_tokens) == len(details.tokens)
    shown = "".join(token.text for token in details.tokens if not token.special)
    assert done.generated_text == shown


def text_best_of(url: str) -> None:
    done = InferenceClient(base_url=url).text_generation(
        STORY, details=True, best_of=3, do_sample=True, max_new_tokens=5
    )
    assert done.details is not None
    assert done.details.best_of_sequences is not None
    assert len(done.details.best_of_sequences) == 2


def text_streamed(url: str) -> None:
    client = InferenceClient(base_url=url)
    text = client.text_generation(STORY, max_new_tokens=8)
    assert STORY + "".join(client.text_generation(STORY, max_new_tokens=8, stream=True)) == text
    events = list(client.text_generation(STORY, max_new_tokens=8, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, 9))
    assert events[-1].generated_text == text
    last = events[-1].details
    assert last is not None
    assert (last.finish_reason, last.generated_tokens, last.input_length) == ("length", 8, 4)


def chat_at_the_root_and_at_v1(url: str) -> None:
    for base in (url, f"{url}/v1"):
        client = InferenceClient(base_url=base)
        done = client.chat_completion(QUESTION, max_tokens=32, temperature=0)
        assert done.choices[0].message.content == ANSWER
        assert done.choices[0].finish_reason == "stop"
        assert done.usage.completion_tokens == 8
        assert done.id
        assert done.created
        assert done.system_fingerprint
        same = client.chat.completions.create(QUESTION, max_tokens=32, temperature=0)
        assert same.choices[0].message.content == ANSWER


def chat_streamed_with_usage(url: str) -> None:
    options: Any = {"include_usage": True}
    client = InferenceClient(base_url=url)  # newer ones close their streams when they are gone
    stream = client.chat_completion(
        QUESTION, max_tokens=32, temperature=0, stream=True, stream_options=options
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == 8


def chat_with_logprobs_seeds_and_stops(url: str) -> None:
    done = InferenceClient(base_url=url).chat_completion(
        QUESTION, max_tokens=32, temperature=0, logprobs=True, top_logprobs=2, seed=1,
        stop=[" France"], presence_penalty=0.0, frequency_penalty=0.0, top_p=0.9,
    )  # fmt: skip
    assert done.choices[0].message.content == "The capital of"
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def endpoint_info_and_health(url: str) -> None:
    client = InferenceClient(model=url, provider="hf-inference")
    info = client.get_endpoint_info()
    assert info["model_id"] == "infercore/demo"
    assert info["max_total_tokens"] > 0
    assert client.health_check()


def refusals_have_types(url: str) -> None:
    client = InferenceClient(base_url=url)
    calls: Any = (
        lambda: client.text_generation(STORY, temperature=-1.0),
        lambda: next(iter(client.text_generation(STORY, temperature=-1.0, stream=True))),
        lambda: client.text_generation(STORY, grammar=GRAMMAR),
        lambda: client.text_generation(STORY, adapter_id="mine"),
    )
    for call in calls:
        _refused(call, ValidationError)


def a_schema_is_refused_by_name(url: str) -> None:
    """This client rewrites it to `{"type": "json_object", "value": …}`: no mode may ignore that."""
    client = InferenceClient(base_url=url)
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    said = _refused(lambda: client.chat_completion(QUESTION, response_format=form), Exception)
    assert "response_format" in said


async def asynchronously(url: str) -> None:
    client = AsyncInferenceClient(base_url=url)
    text = await client.text_generation(STORY, max_new_tokens=8)
    stream = await client.text_generation(STORY, max_new_tokens=8, stream=True)
    assert STORY + "".join([part async for part in stream]) == text
    done = await client.chat_completion(QUESTION, max_tokens=32, temperature=0)
    assert done.choices[0].message.content == ANSWER
    chunks = await client.chat_completion(QUESTION, max_tokens=32, temperature=0, stream=True)
    parts = [chunk.choices[0].delta.content or "" async for chunk in chunks]
    assert "".join(parts) == ANSWER


def _refused(call: Any, kind: type[Exception]) -> str:
    try:
        call()
    except kind as error:
        return str(error) + str(getattr(getattr(error, "response", None), "text", ""))
    raise AssertionError("it was answered")
