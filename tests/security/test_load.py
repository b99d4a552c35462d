"""Load: large prompts beside others, queues that are full, and what refused requests leave."""

import asyncio
import threading
from typing import Any

import psutil
import pytest

from infercore.engine.request import FinishReason
from infercore.errors import Overloaded
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from memory_engine import MemoryEngine
from memory_router import Router
from raw_http import exchange, post, serving_http, statuses

LONG = "word and " * 11_200  # over 100,000 characters
TURN = [{"role": "user", "content": LONG}]
PATHS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", {"inputs": LONG}),
    ("/generate_stream", {"inputs": LONG}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/chat/completions", {"messages": TURN}),
    ("/v1/responses", {"input": LONG}),
    ("/v1/messages", {"model": "", "max_tokens": 1, "messages": TURN}),
    ("/v1/messages/count_tokens", {"model": "", "messages": TURN}),
    ("/tokenize", {"inputs": LONG}),
    ("/tokenize", {"prompt": LONG}),
    ("/chat_tokenize", {"messages": TURN}),
    ("/vertex", {"instances": [{"inputs": LONG}]}),
    ("/v2/models/infercore/demo/generate", {"text_input": LONG}),
    ("/v2/models/infercore/demo/infer", {"inputs": [
        {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [LONG]}]}),
)  # fmt: skip


class WatchedTokenizer(Tokenizer):
    """Notes which threads it tokenizes long texts on, and when it is at it."""

    def __init__(self) -> None:
        super().__init__(demo_path())
        self.threads: set[int] = set()
        self.at_work = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self._begin(text)
        ids = super().encode(text, add_special_tokens=add_special_tokens)
        self.at_work = False
        return ids

    def encode_spans(self, text: str, *, add_special_tokens: bool = True) -> Any:
        self._begin(text)
        spans = super().encode_spans(text, add_special_tokens=add_special_tokens)
        self.at_work = False
        return spans

    def _begin(self, text: str) -> None:
        if len(text) >= len(LONG):
            self.threads.add(threading.get_ident())
            self.at_work = True


@pytest.fixture
def watched(texts: tuple[Tokenizer, ChatTemplate]) -> tuple[WatchedTokenizer, Router]:
    tokenizer = WatchedTokenizer()
    return tokenizer, Router((tokenizer, texts[1]), MemoryEngine([260]))


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_long_texts_are_not_tokenized_on_the_event_loop(
    watched: tuple[WatchedTokenizer, Router], path: str, body: dict[str, Any]
) -> None:
    """S12: whatever the route, it is the work of a thread beside it."""
    tokenizer, router = watched
    assert (await router.http.post(path, json=body)).status_code in (200, 400, 422)
    assert tokenizer.threads
    assert threading.get_ident() not in tokenizer.threads


async def test_health_is_answered_while_a_long_text_is_tokenized(
    watched: tuple[WatchedTokenizer, Router],
) -> None:
    """S12: the tokenizer leaves the interpreter to others meanwhile."""
    tokenizer, router = watched
    long = asyncio.create_task(router.http.post("/tokenize", json={"prompt": LONG * 4}))
    meanwhile = 0
    while not long.done():
        before = tokenizer.at_work
        assert (await router.http.get("/health")).status_code == 200
        meanwhile += before and tokenizer.at_work
        await asyncio.sleep(0)
    assert (await long).status_code == 200
    assert meanwhile > 2


async def test_bytes_of_all_requests_together_are_bounded(texts: Any) -> None:
    """S13: also of those that have not arrived; what a request held is given back at its end."""
    router = Router(texts, MemoryEngine([260]), payload_limit=1000, max_concurrent_requests=2)
    small, big = b'{"inputs": "Hi"}', b'{"inputs": "Hi"}'.ljust(1000)
    async with serving_http(router) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in slow:
            writer.write(post("/generate", big)[:-1])
        refused = b""
        while statuses(refused) != [429]:  # until both are there
            refused = await exchange(port, post("/generate", small))
        assert b"retry-after: 1\r\n" in refused
        assert b'"error_type": "overloaded"' in refused
        nested = await exchange(port, post("/v1/completions", b'{"prompt": "Hi"}'))
        assert statuses(nested) == [429]
        assert b"rate_limit_error" in nested
        for reader, writer in slow:
            writer.write(b" ")
            assert statuses(await reader.read()) == [200]
            writer.close()
            await writer.wait_closed()
        assert statuses(await exchange(port, post("/generate", big))) == [200]


async def test_requests_in_work_are_bounded(texts: Any) -> None:
    """S13: by their number, choices and prompts counted one by one."""
    router = Router(texts, MemoryEngine(), max_concurrent_requests=4)
    first = asyncio.create_task(
        router.http.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2})
    )
    await router.engine.arrived.wait()
    refused = await router.http.post("/generate", json={"inputs": "a"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert len(router.engine.requests) == 4
    first.cancel()


async def test_a_full_queue_of_the_engine_is_told_with_a_wait(texts: Any) -> None:
    """S13: by requests and by tokens, as the engine counts them."""
    router = Router(texts, MemoryEngine())
    call = asyncio.create_task(router.http.post("/generate", json={"inputs": "a"}))
    await router.engine.arrived.wait()
    router.engine.say(1, [], FinishReason.ERROR, Overloaded("the queue is full", 7.0))
    refused = await call
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "7"


@pytest.mark.slow
async def test_refused_requests_leave_nothing(texts: Any) -> None:
    """S13: memory after 10,000 of them is that after 2,000."""
    router = Router(texts, MemoryEngine(), max_concurrent_requests=1)
    held = asyncio.create_task(router.http.post("/generate", json={"inputs": "a"}))
    await router.engine.arrived.wait()

    async def refuse(count: int) -> int:
        for _ in range(count):
            answer = await router.http.post("/generate", json={"inputs": "a" * 1000})
            assert answer.status_code == 429
        return int(psutil.Process().memory_info().rss)

    early = await refuse(2000)
    late = await refuse(8000)
    assert late - early < 4_000_000
    held.cancel()
