"""A streamed chat for TGI's own Python client, which cannot read everybody else's.

The client itself is called in `tests/clients`.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from memory_engine import MemoryEngine
from memory_router import Router

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 2}
DONE = "data: [DONE]"


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    """Answers " a time" to everything."""
    with ChatTemplate.open(demo_path()) as template:
        yield Router((Tokenizer(demo_path()), template), MemoryEngine([260, 553]))


async def events(router: Router, model: str, agent: str) -> list[str]:
    response = await router.http.post(
        "/v1/chat/completions", json={**CHAT, "model": model}, headers={"user-agent": agent}
    )
    assert response.status_code == 200
    return response.text.split("\n\n")[:-1]


def roles(chunks: list[str]) -> list[Any]:
    choices = [choice for chunk in chunks for choice in json.loads(chunk[6:])["choices"]]
    return [choice["delta"]["role"] for choice in choices]


@pytest.mark.parametrize("agent", ["python-requests/2.34.0", "Python/3.11 aiohttp/3.13.0"])
async def test_it_gets_the_role_in_each_chunk_and_no_done(router: Router, agent: str) -> None:
    chunks = await events(router, "tgi", agent)
    assert DONE not in chunks
    assert roles(chunks) == ["assistant"] * 6


@pytest.mark.parametrize(
    ("model", "agent"),
    [
        ("", "python-requests/2.34.0"),
        ("infercore/demo", "Python/3.11 aiohttp/3.13.0"),
        ("tgi", "OpenAI/Python 3.54.0"),
        ("tgi", ""),
    ],
)
async def test_nobody_else_does(router: Router, model: str, agent: str) -> None:
    *chunks, last = await events(router, model, agent)
    assert last == DONE
    assert roles(chunks).count("assistant") == 2
    assert roles(chunks).count(None) == 4
