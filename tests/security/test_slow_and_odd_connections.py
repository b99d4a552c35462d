"""The network: slow clients, odd framing, HTTP/2 floods, and those who leave."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import grpc.aio
import httpx2
import pytest

from grpc_calls import asked, generation, until
from infercore.engine.request import FinishReason
from infercore_api.router.grpc.server import GrpcServer
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server, eventually
from raw_http import all_of, exchange, flood, post, serving_http, statuses

BODY = b'{"inputs": "Hi"}'
QUICK = {"read_timeout": 0.3}


@pytest.fixture
def hasty(texts: Any) -> Router:
    """It does not wait long for requests to arrive."""
    return Router(texts, MemoryEngine([260, 553]), **QUICK)


async def trickle(port: int, data: bytes, pause: float, start: bytes = b"") -> bytes:
    """Send `start`, then byte after byte, until the server has enough of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)
    answer = asyncio.create_task(all_of(reader))
    for byte in data:
        if answer.done():
            break
        writer.write(bytes([byte]))
        await asyncio.wait({answer}, timeout=pause)
    writer.close()
    return await answer


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", b""),
        (b"GET /inf", b"408"),
        (b"GET /info HTTP/1.1\r\nhost: x\r\n", b"408"),
        (post("/generate", BODY)[:-1], b"408"),
        (post("/v1/completions", BODY)[:-1], b"408"),
    ],
)
async def test_a_request_that_does_not_arrive_is_given_up(
    hasty: Router, data: bytes, says: bytes
) -> None:
    """S39: nothing, half a head, half a body: each is let go, and told why in its dialect."""
    async with serving_http(hasty) as port:
        answer = await exchange(port, data)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert says in head
        if says:
            error = json.loads(body)["error"]
            assert isinstance(error, dict) == (b"/v1/" in data)
        assert statuses(await exchange(port, post("/generate", BODY))) == [200]
    assert hasty.metrics()["infercore_requests_in_flight", ""] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET /info HTTP/1.1\r\n" + b"x: y\r\n" * 1000,
        post("/generate", BODY.ljust(1_000_000)),
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n" + b"1;" + b"a" * 5000,
    ],
    ids=["head", "body", "chunk extension"],
)
async def test_a_trickle_does_not_move_the_deadline(hasty: Router, data: bytes) -> None:
    """S39: a byte now and then keeps no connection alive; others are served meanwhile."""
    async with serving_http(hasty) as port:
        slow = [asyncio.create_task(trickle(port, data, 0.02)) for _ in range(20)]
        while not all(each.done() for each in slow):
            assert statuses(await exchange(port, post("/generate", BODY))) == [200]
        assert {tuple(statuses(await each)) for each in slow} == {(408,)}


async def test_one_request_has_one_answer(hasty: Router) -> None:
    """S39, S40: a body that goes on after its refusal is not refused a second time."""
    head = post("/generate", b"", "x: y").replace(b"connection: close\r\n", b"")
    head = head.replace(b"length: 0", b"length: 3000000")
    async with serving_http(hasty) as port:
        assert statuses(await trickle(port, b"a" * 3000, 0.02, head)) == [413]
        chunked = head.replace(b"content-length: 3000000", b"transfer-encoding: chunked")
        wrong = chunked.replace(b"application/json", b"text/plain")
        parts = wrong, b"1\r\na\r\n", b"not a chunk\r\n"
        assert statuses(await exchange(port, *parts)) in ([415], [400])


async def test_garbage_during_an_answer_is_not_answered(texts: Any) -> None:
    """S40: within a stream it would be read as a part of it."""
    router = Router(texts, MemoryEngine())
    stream = post("/generate_stream", BODY).replace(b"connection: close\r\n", b"")
    async with serving_http(router) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(stream)
        await router.engine.arrived.wait()
        router.engine.say(1, [260])
        await reader.readuntil(b"\n\n")
        writer.write(b"\0garbage\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        await until(lambda: router.engine.aborted == [1])
        writer.close()
        await writer.wait_closed()


async def test_who_waits_for_an_answer_is_not_slow(texts: Any) -> None:
    """S39: the deadline is of what the client sends, not of what it waits for."""
    router = Router(texts, MemoryEngine(), **QUICK)
    async with serving_http(router) as port:
        call = asyncio.create_task(exchange(port, post("/generate", BODY) * 2))
        await router.engine.arrived.wait()
        await asyncio.sleep(3 * QUICK["read_timeout"])
        router.engine.say(1, [260], FinishReason.LENGTH)
        answer = await call
    assert statuses(answer)[0] == 200


def test_a_slow_reader_does_not_hold_others_up(toy: Server) -> None:
    """S39: streams that nobody reads, and one that is read."""
    unread = [open_stream(toy, 2000) for _ in range(4)]
    body = {"inputs": "a", "parameters": {"max_new_tokens": 20}}
    with httpx2.Client(base_url=toy.url, timeout=60) as client:
        read = client.post("/generate_stream", json=body).text
    assert read.count("data:") == 20
    for each in unread:
        each.close()
    eventually(lambda: idle(toy), 20, "all is free again")


def open_stream(server: Server, tokens: int) -> socket.socket:
    """A stream of which nothing was read yet."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    body = {"inputs": "a", "parameters": {"max_new_tokens": tokens, "details": True}}
    connection.sendall(post("/generate_stream", json.dumps(body).encode()))
    return connection


def idle(server: Server) -> bool:
    gauges = ("running_sequences", "waiting_sequences", "kv_usage_ratio", "requests_in_flight")
    return all(server.metric(f"infercore_{gauge}") == 0 for gauge in gauges)


def test_who_leaves_frees_what_it_held(toy: Server) -> None:
    """S41: within a few steps, of which each takes the toy 10 ms; `/metrics` tells."""
    connection = open_stream(toy, 4000)
    connection.recv(64)
    eventually(lambda: toy.metric("infercore_kv_usage_ratio") > 0, 20, "it holds blocks")
    steps = toy.metric("infercore_steps_total")
    connection.close()
    eventually(lambda: idle(toy), 20, "all is free again")
    assert toy.metric("infercore_steps_total") - steps < 1000


# --- framing --------------------------------------------------------------------------------------

NEXT = b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
SMUGGLED: dict[str, bytes] = {
    "length and chunks": HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 16\r\ncontent-length: 0\r\n\r\n" + BODY,
    "two lengths in one": HEAD + b"content-length: 16, 0\r\n\r\n" + BODY,
    "a signed length": HEAD + b"content-length: +16\r\n\r\n" + BODY,
    "a negative length": HEAD + b"content-length: -1\r\n\r\n" + BODY,
    "a hexadecimal length": HEAD + b"content-length: 0x10\r\n\r\n" + BODY,
    "a length over 64 bits": HEAD + b"content-length: 18446744073709551632\r\n\r\n" + BODY,
    "a length with a space": HEAD + b"content-length: 1 6\r\n\r\n" + BODY,
    "a space before the colon": HEAD + b"content-length : 16\r\n\r\n" + BODY,
    "an unknown coding": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks not last": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two codings": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
    "a tab in the coding": HEAD + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": HEAD + b"transfer-encoding: chunked\r\n\r\n\r\n0\r\n\r\n",
    "a negative chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "a chunk over 64 bits": HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
    "a chunk that is longer": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "NUL in a header": HEAD + b"x: a\0b\r\ncontent-length: 16\r\n\r\n" + BODY,
    "CR in a header": HEAD + b"x: a\rb: c\r\ncontent-length: 16\r\n\r\n" + BODY,
    "no name": HEAD + b": a\r\ncontent-length: 16\r\n\r\n" + BODY,
    "HTTP/2's start": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /info\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_framing_of_two_minds_is_refused(router: Router, name: str) -> None:
    """S40: where a proxy and this server might see two requests and one, none is served."""
    async with serving_http(router) as port:
        answer = await exchange(port, SMUGGLED[name] + NEXT)
    assert statuses(answer)[:1] in ([400], []), answer
    assert b"model_id" not in answer
    assert not router.engine.requests


async def test_requests_after_another_keep_their_order(router: Router) -> None:
    """S40: a client may send several at once, and a broken one is the last of them."""
    good = post("/generate", BODY).replace(b"connection: close\r\n", b"")
    async with serving_http(router) as port:
        answer = await exchange(port, good * 3 + b"\r\n\r\nnonsense\r\n\r\n" + good)
    found = statuses(answer)
    assert found == [200] * found.count(200) + [400] * found.count(400)
    assert found.count(400) <= 1


# --- HTTP/2, which gRPC speaks --------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(
        ">I", stream) + payload  # fmt: skip


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed (RFC 7541, section 6.2.2), each part below 127 bytes."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
CALL = b"".join(
    literal(*pair)
    for pair in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
        (b":path", b"/infercore.v1.Generation/Generate"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    )
)  # fmt: skip


def rapid_reset() -> Iterator[bytes]:
    for stream in range(1, 20_001, 2):
        yield frame(1, 4, stream, CALL) + frame(3, 0, stream, struct.pack(">I", 8))


def endless_headers() -> Iterator[bytes]:
    yield frame(1, 0, 1, CALL)
    for number in range(2000):
        yield frame(9, 0, 1, literal(b"x-%d" % number, b"a" * 100) * 20)


def settings_and_pings() -> Iterator[bytes]:
    for _ in range(10_000):
        yield frame(4, 0, 0) + frame(6, 0, 0, b"12345678")


def odd_frames() -> Iterator[bytes]:
    yield frame(0, 0, 1, b"data of no stream")
    yield frame(8, 0, 0, struct.pack(">I", 0))
    yield frame(1, 4, 2, b"\xff" * 100)


@pytest.mark.parametrize("frames", [rapid_reset, endless_headers, settings_and_pings, odd_frames])
async def test_floods_of_http2_frames_harm_nobody(router: Router, frames: Any) -> None:
    """S40: rapid reset (CVE-2023-44487), CONTINUATION without end, SETTINGS and PING, nonsense."""
    server = GrpcServer(router.state, "127.0.0.1", 0)
    await server.start()
    try:
        await flood(server.port, START + b"".join(frames()))

        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            reply = await generation(channel).Generate(asked("a", max_new_tokens=2))
            assert reply.generated_text == " a time"
    finally:
        await server.stop(0)
    await until(lambda: router.metrics()["infercore_requests_in_flight", ""] == 0)
