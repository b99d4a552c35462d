"""As many streams as one router is made for, beside a long text that is being tokenized.

`benchmarks/many_streams.py` measures what this only shows to work.
"""

import asyncio
import json
from pathlib import Path

import httpx2
import pytest

from processes import serving

STREAMS, TOKENS = 256, 16
LONG = "word " * 20_000  # 100,000 characters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_all_complete_and_health_is_always_answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder: Path = tmp_path_factory.mktemp("many")
    flags = ("--dtype", "float32", "--max-total-tokens", "128")
    with serving(folder, *flags, "--max-concurrent-requests", str(STREAMS + 8)) as server:
        pids = (server.engine.pid, server.router.pid)
        streams, healthy, lengths = asyncio.run(_all_at_once(server.url))
        assert streams == [TOKENS] * STREAMS
        assert set(healthy) == {200}
        assert len(healthy) > 10
        assert len(set(lengths)) == 1
        assert lengths[0] > 10_000
        assert (server.engine.pid, server.router.pid) == pids
        assert server.end() == 0


async def _all_at_once(url: str) -> tuple[list[int], list[int], list[int]]:
    """(tokens of each stream, status of each look at /health, tokens of the text, each time)"""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        over = asyncio.Event()
        beside = [asyncio.create_task(each(client, over)) for each in (_health, _tokenize)]
        streams = await asyncio.gather(*(_stream(client, index) for index in range(STREAMS)))
        over.set()
        healthy, lengths = await asyncio.gather(*beside)
    return streams, healthy, lengths


async def _stream(client: httpx2.AsyncClient, index: int) -> int:
    body = {
        "prompt": [5 + index % 500] * (1 + index % 60),
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "seed": index,
        "logprobs": 0,
        "stream": True,
    }
    tokens, ended = 0, False
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            ended = data == "[DONE]" or (ended and not data)
            if data.startswith("{"):
                (choice,) = json.loads(data)["choices"]
                tokens += len(choice["logprobs"]["tokens"])
    assert ended
    return tokens


async def _health(client: httpx2.AsyncClient, over: asyncio.Event) -> list[int]:
    found = []
    while not over.is_set():
        found.append((await client.get("/health")).status_code)
        await asyncio.sleep(0.05)
    return found


async def _tokenize(client: httpx2.AsyncClient, over: asyncio.Event) -> list[int]:
    found = []
    while not over.is_set():
        found.append(len((await client.post("/tokenize", json={"inputs": LONG})).json()))
    return found
