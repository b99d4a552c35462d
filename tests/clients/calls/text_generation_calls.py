"""What users of `text-generation`, TGI's own client, do. It parses replies strictly."""

from functools import partial
from importlib import import_module
from typing import Any

# by name, since checks of types run where the client is not installed
text_generation = import_module("text_generation")
ValidationError = import_module("text_generation.errors").ValidationError

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"


def generate(url: str) -> None:
    client = text_generation.Client(url)
    plain = client.generate(STORY, max_new_tokens=8)
    assert plain.details.finish_reason == "length"
    assert plain.details.generated_tokens == len(plain.details.tokens) == 8
    full = client.generate(
        STORY, max_new_tokens=8, decoder_input_details=True, top_n_tokens=2, return_full_text=True
    )
    assert full.generated_text == STORY + plain.generated_text
    assert [token.text for token in full.details.prefill] == ["Once", " upon", " a", " time"]
    assert all(len(top) >= 2 for top in full.details.top_tokens)


def generate_with_every_parameter(url: str) -> None:
    done = text_generation.Client(url).generate(
        STORY, do_sample=True, max_new_tokens=8, repetition_penalty=1.1, frequency_penalty=0.1,
        seed=3, stop_sequences=["\n\n"], temperature=0.7, top_k=50, top_p=0.95, truncate=3,
        typical_p=0.98, watermark=True,
    )  # fmt: skip
    assert done.details.seed == 3
    best = text_generation.Client(url).generate(STORY, do_sample=True, max_new_tokens=5, best_of=3)
    assert len(best.details.best_of_sequences) == 2


def generate_stream(url: str) -> None:
    client = text_generation.Client(url)
    text = client.generate(STORY, max_new_tokens=8).generated_text
    events = list(client.generate_stream(STORY, max_new_tokens=8, top_n_tokens=1))
    assert "".join(event.token.text for event in events) == text
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].generated_text == text
    assert events[-1].details.generated_tokens == 8


def chat(url: str) -> None:
    done = text_generation.Client(url).chat(
        QUESTION, max_tokens=32, temperature=0.0, logprobs=True, top_logprobs=2, seed=1
    )
    (choice,) = done.choices
    assert choice.message.content == ANSWER
    assert done.system_fingerprint
    assert done.usage["completion_tokens"] == 8


def chat_stream(url: str) -> None:
    stream = text_generation.Client(url).chat(QUESTION, max_tokens=32, temperature=0.0, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert {delta.role for delta in deltas} == {"assistant"}


def refusals_have_types(url: str) -> None:
    client = text_generation.Client(url)
    for call in (client.generate, lambda *a, **k: next(client.generate_stream(*a, **k))):
        error = _refusal(ValidationError, partial(call, STORY, max_new_tokens=100_000))
        assert "max_new_tokens" in str(error)


async def asynchronously(url: str) -> None:
    client = text_generation.AsyncClient(url)
    done = await client.generate(STORY, max_new_tokens=8)
    events = [event async for event in client.generate_stream(STORY, max_new_tokens=8)]
    assert events[-1].generated_text == done.generated_text
    chatted = await client.chat(QUESTION, max_tokens=32, temperature=0.0)
    assert chatted.choices[0].message.content == ANSWER
    stream = await client.chat(QUESTION, max_tokens=32, temperature=0.0, stream=True)
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == ANSWER


def _refusal(kind: Any, call: Any) -> Any:
    """The error that the call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was answered")
