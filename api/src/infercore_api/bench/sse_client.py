"""A client that costs little: one raw socket per request, no object per token.

What it spends is taken from the server's cores, so it neither parses an event that it can
recognise by its first bytes nor runs a task per read.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from typing import Any, cast
from urllib.parse import urlsplit

from infercore.errors import ConfigError
from infercore_api.bench.figures import Trace

_GET_SECONDS = 30.0


class ChunkedBody:
    """Takes the framing off a body sent in chunks (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self._raw = b""
        self._left = 0
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes that `data` brought."""
        self._raw += data
        body: list[bytes] = []
        while self._raw and not self.ended:
            if self._left:
                part, self._raw = self._raw[: self._left], self._raw[self._left :]
                self._left -= len(part)
                body.append(part)
                continue
            line, found, rest = self._raw.partition(b"\r\n")
            if not found:
                break
            self._raw = rest
            if line:  # an empty line ends the chunk before
                self._left = int(line.partition(b";")[0], 16)
                self.ended = self._left == 0
        return b"".join(body)


class StreamedCompletion(asyncio.Protocol):
    """One request to `/v1/completions`, streamed. `done` is set once `trace` is complete."""

    def __init__(self, request: bytes) -> None:
        self.trace = Trace(time.perf_counter(), [])
        self.done = asyncio.get_running_loop().create_future()
        self._request = request
        self._head = b""
        self._in_body = False
        self._chunks: ChunkedBody | None = None
        self._buffer = b""
        self._finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._in_body:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._begin_body(head)
        self._buffer += data if self._chunks is None else self._chunks.feed(data)
        if self.trace.error:
            return  # an answer that is no stream; its body is the reason
        *events, self._buffer = self._buffer.split(b"\n\n")
        for event in events:
            self._take(event, now)

    def connection_lost(self, exc: Exception | None) -> None:
        self.trace.ended = self.trace.ended or time.perf_counter()
        if self.trace.error and self._buffer:
            self.trace.error += f": {self._buffer.decode(errors='replace')}"
        elif not self.trace.error and not self._finished:
            why = f" ({exc})" if exc is not None else ""
            self.trace.error = f"the stream ended before its last event{why}"
        if not self.done.done():
            self.done.set_result(None)

    def _begin_body(self, head: bytes) -> None:
        self._in_body, self._head = True, b""
        status = head.split(b" ", 2)[1].decode()
        if status != "200":
            self.trace.error = f"status {status}"
        if b"transfer-encoding: chunked" in head.lower():
            self._chunks = ChunkedBody()

    def _take(self, event: bytes, now: float) -> None:
        if not event.startswith(b"data: "):
            return  # a comment that keeps the connection alive
        body = event[6:]
        if body == b"[DONE]":
            self._finished = True
        elif body.startswith(b'{"error"'):
            self.trace.error = body.decode(errors="replace")
        else:
            usage = _usage(body)
            if usage is not None:
                self.trace.tokens = usage["completion_tokens"]
            if usage is None or b'"choices":[]' not in body.replace(b" ", b""):
                self.trace.arrivals.append(now)
                self.trace.ended = now


def _usage(event: bytes) -> dict[str, int] | None:
    if b'"usage":{' not in event and b'"usage": {' not in event:
        return None
    usage: dict[str, int] = json.loads(event)["usage"]
    return usage


class Target:
    """Where a server listens. Raises ConfigError for a URL that is not plain HTTP."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.path.strip("/"):
            raise ConfigError(f"--url takes http://host:port, without a path. Given: {url}")
        self.host, self.port = parts.hostname, parts.port or 80

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError if nobody answers."""
        connection = HTTPConnection(self.host, self.port, timeout=_GET_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def completion(self, model: str, prompt: Sequence[int], output_len: int) -> bytes:
        """The bytes of a streamed completion request for exactly `output_len` greedy tokens."""
        fields: dict[str, Any] = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(fields).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + body

    async def send(self, request: bytes) -> Trace:
        """Send one request and take its stream to the end. A failure is told in the trace."""
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        try:
            transport, protocol = await loop.create_connection(
                lambda: StreamedCompletion(request), self.host, self.port
            )
        except OSError as error:
            return Trace(began, [], time.perf_counter(), error=f"cannot connect: {error}")
        try:
            await protocol.done
        finally:
            transport.close()
        protocol.trace.sent = began
        return protocol.trace
