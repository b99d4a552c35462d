"""What users of LlamaIndex do, through its packages for OpenAI's API and for Hugging Face's."""

from importlib import import_module
from typing import Any

# by name, since checks of types run where the clients are not installed
ChatMessage = import_module("llama_index.core.llms").ChatMessage
OpenAILike = import_module("llama_index.llms.openai_like").OpenAILike
HuggingFaceInferenceAPI = import_module("llama_index.llms.huggingface_api").HuggingFaceInferenceAPI

ANSWER = "The capital of France is Paris."
STORY = "Once upon a time"


def _question() -> list[Any]:
    return [ChatMessage(role="user", content="What is the capital of France?")]


def openai_like(url: str) -> None:
    model = OpenAILike(
        model="infercore/demo", api_base=f"{url}/v1", api_key="-", is_chat_model=True,
        temperature=0, max_tokens=32, max_retries=0,
    )  # fmt: skip
    assert model.chat(_question()).message.content == ANSWER
    assert "".join(part.delta or "" for part in model.stream_chat(_question())) == ANSWER


def openai_like_completions(url: str) -> None:
    model = OpenAILike(
        model="infercore/demo", api_base=f"{url}/v1", api_key="-", is_chat_model=False,
        temperature=0, max_tokens=8, max_retries=0,
    )  # fmt: skip
    text = model.complete(STORY).text
    assert text
    assert "".join(part.delta or "" for part in model.stream_complete(STORY)) == text


def huggingface(url: str) -> None:
    for task in ("conversational", "text-generation"):
        model = HuggingFaceInferenceAPI(
            model=url, task=task, temperature=0.01, num_output=8, token="-"
        )
        assert model.complete(STORY).text, task
    chat = HuggingFaceInferenceAPI(model=url, task="conversational", temperature=0.01, token="-")
    assert chat.chat(_question()).message.content == ANSWER
    assert "".join(part.delta or "" for part in chat.stream_chat(_question())) == ANSWER
