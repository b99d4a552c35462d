"""The HTTP connection as a stream of events writes to it: one write per event, nothing else."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection:
    """Where a response of chunked encoding that has begun takes its next chunks.

    What is written here goes past ASGI: for a token, uvicorn's `send` and the layers before it
    cost as much as the text itself. Framing is that of RFC 9112, section 7.1.
    """

    __slots__ = ("_flow", "_write")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._write = transport.write
        self._flow = flow

    def write(self, body: bytes) -> bool:
        """Write one chunk, which is not empty, unless the client reads too slowly to take it.

        Returns whether it was written. After the client left it is thrown away.
        """
        if self._flow.write_paused:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol; each request's state has the `Connection` that it came on."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["connection"] = Connection(self.transport, self.flow)
