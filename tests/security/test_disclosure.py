"""Disclosure: what errors tell, what logs hold, what becomes a series."""

import asyncio
import functools
import logging
import re
import sys
from typing import Any

import pytest

from grpc_calls import asked, generation, refusal, serving_grpc, until
from infercore.engine.request import FinishReason
from infercore.errors import EngineUnavailable, GenerationFailed, RequestError
from infercore.logs import JsonFormatter, TextFormatter
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server
from raw_http import exchange

INSIDE = (
    "request 7: its step failed: step 3 failed on cpu: [enforce fail at alloc_cpu.cpp:118] err",
    "request 7: its step failed: CUDA error at /opt/torch/aten/src/ATen/native.cu:12",
    "request 7: its step failed: <Tensor object at 0x7f12aa34bb00> is on the wrong device",
    "request 7: its step failed: Traceback (most recent call last):\n  File x",
    "request 7: its step failed: built with NCCL 2.21.5",
    "request 7: its step failed: cannot open '/home/me/model/weights'",
)
PLAIN = "request 7: its logits at position 3 are not finite"
TOLD = re.compile(r"/\w+/\w+|0x[0-9a-f]{4,}|\.cpp|\.cu\b|\.py|Traceback|object at|\d\.\d+\.\d")
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "a"},
    "/generate_stream": {"inputs": "a"},
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "stream": True},
    "/v1/messages": {
        "model": "",
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "a"}],
    },
    "/v2/models/infercore/demo/generate": {"text_input": "a"},
}


@pytest.fixture(scope="module")
def silent(texts: Any) -> Router:
    """Its engine says only what it is told to."""
    return Router(texts, MemoryEngine())


async def told(router: Router, path: str, error: RequestError, *, late: bool) -> str:
    """What a client hears of an error in the engine; late: after a token."""
    router.engine.requests.clear()
    call = asyncio.create_task(router.http.post(path, json=BODIES[path]))
    await until(lambda: len(router.engine.requests) == 1)
    (number,) = router.engine.requests
    if late:
        router.engine.say(number, [260])
    router.engine.say(number, [], FinishReason.ERROR, error)
    answer = await call
    assert answer.status_code >= 400 or late
    return str(answer.text).rpartition('"error"')[2]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_errors_of_the_engine_hide_the_inside(
    silent: Router, path: str, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """S36: in every dialect, also within a stream; the log has all of it."""
    for message in INSIDE:
        text = await told(silent, path, GenerationFailed(message), late=late)
        assert "request 7: its step failed" in text
        assert "Its cause is in the server's log" in text
        assert not TOLD.search(text), text
        (logged,) = (each for each in caplog.messages if message in each)
        assert re.match(r"request [0-9a-f]{32} failed: ", logged), "the id that the client has"
    assert PLAIN in await told(silent, path, GenerationFailed(PLAIN), late=late)


async def test_errors_of_the_engine_hide_the_inside_over_grpc(texts: Any) -> None:
    """S36: in statuses too."""
    router = Router(texts, MemoryEngine())
    async with serving_grpc(router.state) as channel:
        for number, message in enumerate(INSIDE, 1):
            call = generation(channel).Generate(asked("a"))
            await until(functools.partial(router.engine.requests.__contains__, number))
            router.engine.say(number, [], FinishReason.ERROR, GenerationFailed(message))
            _, text, metadata = await refusal(call)
            assert not TOLD.search(text), text
            assert metadata["x-request-id"]


async def test_an_engine_that_is_gone_is_told_without_its_address(silent: Router) -> None:
    """S36: which process, which socket: nothing of a client's concern."""
    for path in BODIES:
        text = await told(silent, path, EngineUnavailable("The engine died"), late=False)
        assert not TOLD.search(text)


# --- logs -----------------------------------------------------------------------------------------

FORGED = "2026-01-01 00:00:00,000 INFO    router: forged"
ODD = (
    "/v1/models/%0d%0a2026-01-01%2000:00:00,000%20INFO%20%20%20%20router:%20forged",
    "/%1b%5b2J%1b%5b31mforged",
    "/%00%07%08%7f%c2%9b31m",
    "/%e2%80%a8forged%e2%80%a9%e2%80%ae",
    "/%85forged%0b%0c",
)


async def test_lines_of_the_log_cannot_be_forged(toy: Server) -> None:
    """S38: paths, models, ids and agents with CR, LF and terminal codes."""
    for path in ODD:
        start = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        await exchange(toy.port, start.encode())
    for header in ("x-request-id", "user-agent", "host", "authorization", "traceparent"):
        odd = f"{header}: \x1b[31m{FORGED}\xc2\x85"
        head = f"GET /info HTTP/1.1\r\n{odd}\r\nconnection: close\r\n\r\n"
        await exchange(toy.port, head.encode("latin-1"))
    for name in (f"a\r\n{FORGED}", "\x1b]0;title\x07", "\u202eabc"):
        body = {"model": name, "messages": [{"role": "user", "content": "a"}]}
        with pytest.raises(OSError, match="404"):
            toy.post("/v1/chat/completions", body)
    text = toy.log.read_bytes().decode()
    assert "forged" in text, "paths are there, escaped"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    assert not re.search(r"^2026-01-01", text, re.MULTILINE)


@pytest.mark.parametrize("formatter", [TextFormatter("p"), JsonFormatter("p")])
def test_not_even_by_an_error_of_the_inside(formatter: logging.Formatter) -> None:
    """S38: a message of many lines is indented or escaped, in a traceback too."""
    try:
        raise ValueError(f"bad\n{FORGED}\x1b[2J\r{FORGED}")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "m\n%s", (FORGED,), sys.exc_info())
    lines = formatter.format(record).split("\n")
    assert not any(line.startswith("2026-01-01") for line in lines[1:])
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", "".join(lines))


# --- series ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_ten_thousand_names_make_no_series(texts: Any) -> None:
    """S42: of models, paths, methods and ids."""
    router = Router(texts, MemoryEngine([260, 553]), vllm_metrics=True)

    async def ask(number: int) -> None:
        chat = {"model": f"m{number}", "messages": [{"role": "user", "content": "a"}]}
        headers = {"x-request-id": f"r{number}"}
        await router.http.post("/v1/chat/completions", json=chat, headers=headers)
        await router.http.get(f"/v2/models/{number}/ready")

    await ask(0)
    before = router.metrics().keys()
    for number in range(10_000):
        await ask(number)
    assert router.metrics().keys() == before


async def test_names_over_grpc_make_no_series(router: Router) -> None:
    """S42: of models and of methods."""
    async with serving_grpc(router.state) as channel:
        await generation(channel).Generate(asked("a", max_new_tokens=2))
        before = router.metrics().keys()
        for number in range(100):
            request = asked("a")
            request.model = f"m{number}"
            await refusal(generation(channel).Generate(request))
            await refusal(channel.unary_unary(f"/m{number}/n")(b""))
        assert router.metrics().keys() == before
