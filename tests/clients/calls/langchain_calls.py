"""What users of LangChain do, through its packages for OpenAI and for Hugging Face."""

from functools import partial
from importlib import import_module
from typing import Any

# by name, since checks of types run where the clients are not installed
langchain_openai = import_module("langchain_openai")
langchain_huggingface = import_module("langchain_huggingface")

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"
MODEL = "infercore/demo"


def _chat(url: str, **options: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 32, "max_retries": 0, **options}
    return langchain_openai.ChatOpenAI(base_url=f"{url}/v1", api_key="-", model=MODEL, **given)


def openai_chat(url: str) -> None:
    done = _chat(url).invoke(QUESTION)
    assert done.content == ANSWER
    assert done.usage_metadata["output_tokens"] == 8
    assert done.response_metadata["finish_reason"] == "stop"
    assert [each.content for each in _chat(url).batch([QUESTION] * 2)] == [ANSWER] * 2


def openai_chat_streamed(url: str) -> None:
    chunks = list(_chat(url, stream_usage=True).stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)


def openai_responses(url: str) -> None:
    chat = _chat(url, use_responses_api=True)
    assert chat.invoke(QUESTION).text == ANSWER
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == ANSWER


def openai_completions(url: str) -> None:
    """It sends explicit nulls, and a list of one prompt."""
    model = langchain_openai.OpenAI(
        base_url=f"{url}/v1", api_key="-", model=MODEL, temperature=0, max_tokens=8, max_retries=0
    )
    text = model.invoke(STORY)
    assert text
    assert "".join(model.stream(STORY)) == text


def openai_schemas_and_tools_are_refused_by_name(url: str) -> None:
    schema = {"title": "Answer", "type": "object", "properties": {"city": {"type": "string"}}}
    calls: tuple[tuple[str, Any], ...] = (
        ("response_format", _chat(url).with_structured_output(schema, method="json_schema")),
        ("tools", _chat(url).bind_tools([schema])),
    )
    for param, chain in calls:
        assert param in str(_refusal(Exception, partial(chain.invoke, QUESTION)))


async def openai_asynchronously(url: str) -> None:
    assert (await _chat(url).ainvoke(QUESTION)).content == ANSWER
    chunks = [chunk.content async for chunk in _chat(url).astream(QUESTION)]
    assert "".join(chunks) == ANSWER


def _endpoint(url: str, **options: Any) -> Any:
    return langchain_huggingface.HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=8, **options)


def huggingface_endpoint(url: str) -> None:
    """It sends `do_sample: false` beside a temperature."""
    text = _endpoint(url).invoke(STORY)
    assert text
    assert _endpoint(url).invoke(STORY) == text
    assert "".join(_endpoint(url).stream(STORY)) in {text, text.removeprefix(STORY)}
    assert _endpoint(url, do_sample=True, temperature=1.5, seed=1, top_k=40).invoke(STORY)


async def huggingface_endpoint_asynchronously(url: str) -> None:
    assert await _endpoint(url).ainvoke(STORY) == _endpoint(url).invoke(STORY)


def huggingface_chat(url: str) -> None:
    chat = langchain_huggingface.ChatHuggingFace(
        llm=_endpoint(url), model_id=MODEL, temperature=0, max_tokens=32
    )
    assert chat.invoke(QUESTION).content == ANSWER
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == ANSWER


def _refusal(kind: Any, call: Any) -> Any:
    """The error that the call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was answered")
