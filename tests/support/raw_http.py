"""A router's HTTP server in this process, and requests that no client library would send."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from grpc_calls import until
from infercore_api.router.main import http_server
from memory_router import Router

PATIENCE = 20.0  # seconds; far more than anything here takes


@asynccontextmanager
async def serving_http(router: Router) -> AsyncIterator[int]:
    """The port of an HTTP server, configured as the real one, over a router in memory."""
    server = http_server(router.app, router.state.options)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send the parts one after the other; all that is answered until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            return await all_of(reader)
    except ConnectionError:
        return b""  # it closed while something was still being sent
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What is answered until the connection ends, well or not."""
    heard = b""
    with suppress(ConnectionError):
        while chunk := await reader.read(65_536):
            heard += chunk
    return heard


async def flood(port: int, data: bytes) -> None:
    """Send so much, read for a moment what is said to it, and leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(2):
            writer.write(data)
            await writer.drain()
            await reader.read()
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


def statuses(answer: bytes) -> list[int]:
    """The status of each response in what was answered."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def post(path: str, content: bytes, *headers: str) -> bytes:
    """A POST of JSON, after which the server closes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(content)}",
        *headers,
        "connection: close",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content
