"""The same request in every dialect, and what each reply says, in the same words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infercore_conformance.http_server import NAME, ServerProcess

TEXTS = ("Once upon a time", "The sea is")  # shorter than a block
MESSAGES = ({"role": "user", "content": "Hi"},)
TOKENS = 8
SEED, TEMPERATURE = 31, 0.9


@dataclass(frozen=True, slots=True)
class Choice:
    """How tokens are chosen, as TGI's parameters, as OpenAI's fields, and for `LLM.generate`."""

    native: dict[str, Any]
    openai: dict[str, Any]
    offline: dict[str, Any]


GREEDY = Choice({"do_sample": False}, {"temperature": 0}, {"temperature": 0.0})
SEEDED = Choice(
    {"do_sample": True, "temperature": TEMPERATURE, "seed": SEED},
    {"temperature": TEMPERATURE, "seed": SEED},
    {"temperature": TEMPERATURE, "seed": SEED},
)


def native(text: str, choice: Choice = GREEDY, tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    """A body of /generate. more: further parameters."""
    parameters = {"max_new_tokens": tokens, "details": True, **choice.native, **more}
    return {"inputs": text, "parameters": parameters}


def completion(
    prompt: str | Sequence[int], choice: Choice = GREEDY, tokens: int = TOKENS, **more: Any
) -> dict[str, Any]:
    """A body of /v1/completions. more: further fields."""
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, **choice.openai, **more}


def chat(choice: Choice = GREEDY, tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    """A body of /v1/chat/completions."""
    return {"messages": list(MESSAGES), "max_tokens": tokens, **choice.openai, **more}


def ids_of_chat(server: ServerProcess) -> list[int]:
    """The prompt that `MESSAGES` become."""
    body = server.sound("/chat_tokenize", {"messages": list(MESSAGES)})
    return [token["id"] for token in body["tokenize_response"]]


def text_of_completion(reply: Any) -> str:
    text: str = reply["choices"][0]["text"]
    return text


def text_of_chat(reply: Any) -> str:
    text: str = reply["choices"][0]["message"]["content"]
    return text


def ids_of(reply: Any) -> list[int]:
    """The tokens in the details of a whole reply of /generate."""
    return [token["id"] for token in reply["details"]["tokens"]]
