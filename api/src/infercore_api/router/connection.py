"""The HTTP connection: bounds on what arrives, and where a stream of events writes to."""

import asyncio
from typing import Any, ClassVar

from fastapi import HTTPException
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from infercore_api.router.problems import problem_of

MAX_HEAD = 65_536  # bytes of a request's first line and headers
MAX_HEADERS = 128
_LINGER_SECONDS = 1.0


class Connection:
    """Where a response of chunked encoding that has begun takes its next chunks.

    What is written here goes past ASGI: for a token, uvicorn's `send` and the layers before it
    cost as much as the text itself. Framing is that of RFC 9112, section 7.1.
    """

    __slots__ = ("_flow", "_lost", "_write")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._write = transport.write
        self._flow = flow
        self._lost = False

    def write(self, body: bytes) -> bool:
        """Write one chunk, which is not empty, unless the client reads too slowly to take it.

        Returns whether it was written. After the client left it is thrown away.
        """
        if self._flow.write_paused:
            return False
        if not self._lost:
            self._write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def lose(self) -> None:
        """The client left; its transport takes nothing any more, not even to throw it away."""
        self._lost = True


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds of its own; a request's state has its `Connection`.

    A head over MAX_HEAD bytes or MAX_HEADERS headers is refused with 431. A head, and then a body,
    each have `read_timeout` seconds to arrive, however they trickle in; after that the request is
    refused with 408. Either ends the connection. Trailers are dropped (RFC 9110, section 6.5.1):
    they would come to stand among headers that were already looked at.
    """

    read_timeout: ClassVar[float] = 30.0

    @classmethod
    def within(cls, read_timeout: float) -> "type[HttpProtocol]":
        """The same with another time to arrive, in seconds."""
        return type(cls.__name__, (cls,), {"read_timeout": read_timeout})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_size = 0
        self._fault = (400, "The request is not valid HTTP")
        self._deadline: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = Connection(self.transport, self.flow)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._connection.lose()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_size += len(data)  # of a head that is not complete yet
            if self._head_size > MAX_HEAD:
                self._refuse(431, f"The headers are longer than {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_size = 0
        state = self.scope["state"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        state["connection"] = self._connection
        self._expect_more()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()  # pyright: ignore[reportOptionalMemberAccess]
        if version not in {"1.0", "1.1"}:
            raise ValueError("another version of HTTP")  # the parser stops, and asks for 400
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            self._fault = (
                431,
                f"The headers are longer than {MAX_HEAD} bytes, or more than {MAX_HEADERS}",
            )
            raise ValueError(self._fault[1])
        super().on_headers_complete()
        self._in_head = False
        self._expect_more()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._expect_nothing()

    def shutdown(self) -> None:
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed; `msg` is uvicorn's text for it."""
        del msg
        self._refuse(*self._fault)

    def _expect_more(self) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(self.read_timeout, self._too_slow)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        cycle = self._last
        answering = cycle is not None and not cycle.response_complete
        if self.flow.read_paused or (self._in_head and answering):
            self._expect_more()  # the client sent its next request early, and waits for us
        elif cycle is None and not self._in_head:
            self.transport.close()  # it sent nothing at all
        else:
            self._refuse(408, f"The request did not arrive within {self.read_timeout:g} s")

    @property
    def _last(self) -> RequestResponseCycle | None:
        """The last request whose head arrived."""
        return self.cycle

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is arriving with an error, unless another answer is on its way, and close."""
        self._expect_nothing()
        self._refused = True
        path, cycle = "", self._last
        if self._in_head or cycle is None:
            busy = cycle is not None and not cycle.response_complete
        else:  # it is this one's body
            busy = cycle.response_started
            path = str(self.scope.get("path", ""))
            cycle.disconnected = True
            cycle.message_event.set()
        if busy or self.pipeline:
            self.transport.close()
            return
        body = problem_of(HTTPException(status, message)).body(path).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d"
        self.transport.write(STATUS_LINE[status] + head % len(body) + b"\r\n\r\n" + body)
        # what still arrives is read and dropped for a while: closing at once would reset the
        # connection, and the client might never see the answer (RFC 9112, section 9.6)
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
