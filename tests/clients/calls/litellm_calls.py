"""What users of LiteLLM do, by each of the prefixes under which it knows a server like this one."""

import os
from functools import partial
from importlib import import_module
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
# by name, since checks of types run where the client is not installed
litellm = import_module("litellm")

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"
GREEDY: Any = {"temperature": 0, "max_tokens": 32}


def _bases(url: str) -> tuple[tuple[str, str, dict[str, Any]], ...]:
    """(model, address, what else is given); without a key it sends one of its own."""
    return (
        ("hosted_vllm/infercore/demo", f"{url}/v1", {}),
        ("openai/infercore/demo", f"{url}/v1", {"api_key": "-"}),
        ("huggingface/tgi", url, {"api_key": "-"}),
    )


def chat(url: str) -> None:
    for model, base, more in _bases(url):
        done = litellm.completion(model, QUESTION, api_base=base, **more, **GREEDY)
        assert done.choices[0].message.content == ANSWER, model
        assert done.choices[0].finish_reason == "stop"
        assert done.usage.completion_tokens == 8


def chat_streamed(url: str) -> None:
    for model, base, more in _bases(url):
        chunks = litellm.completion(
            model, QUESTION, api_base=base, stream=True, stream_options={"include_usage": True},
            **more, **GREEDY,
        )  # fmt: skip
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(parts) == ANSWER, model


def text_completion(url: str) -> None:
    model = "text-completion-openai/infercore/demo"
    base: Any = {"api_base": f"{url}/v1", "api_key": "-", "temperature": 0, "max_tokens": 8}
    text = litellm.text_completion(model=model, prompt=STORY, **base).choices[0].text
    assert text
    chunks = litellm.text_completion(model=model, prompt=STORY, stream=True, **base)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == text


def anthropics_messages(url: str) -> None:
    claude = litellm.completion(
        "anthropic/infercore/demo", QUESTION, api_base=url, api_key="-", **GREEDY
    )
    assert claude.choices[0].message.content == ANSWER


def refusals_have_types(url: str) -> None:
    for model, base, more in _bases(url):
        call = partial(litellm.completion, model, QUESTION, api_base=base, top_p=2.5, **more)
        assert "top_p" in str(_refusal(litellm.BadRequestError, call))


async def asynchronously(url: str) -> None:
    for model, base, more in _bases(url):
        done = await litellm.acompletion(model, QUESTION, api_base=base, **more, **GREEDY)
        assert done.choices[0].message.content == ANSWER, model


def _refusal(kind: Any, call: Any) -> Any:
    """The error that the call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was answered")
