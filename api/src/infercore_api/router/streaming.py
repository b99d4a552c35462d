"""EventStream: the response that carries server-sent events, one task and no object per token."""

import asyncio
from time import monotonic

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from infercore.errors import RequestError
from infercore_api.router.connection import Connection
from infercore_api.router.generation import Generation
from infercore_api.router.problems import problem_of, speaks_openai

DONE = "data: [DONE]\n\n"
_KEEP_ALIVE = ":\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientLeft(Exception):
    """The client closed its connection, or left its stream unread for too long."""


class EventStream(Response):
    """Writes what is pushed, in as few writes as the client's pace asks for.

    The status line leaves with the first event, so a request that fails before it gets the
    status of its error. A client that leaves, or that reads nothing for `write_timeout` seconds,
    ends the generation. After `keep_alive` seconds of silence a comment is sent.
    """

    def __init__(
        self,
        generation: Generation,
        headers: list[tuple[bytes, bytes]],
        *,
        keep_alive: float,
        write_timeout: float,
    ) -> None:
        self.background = None
        self.status_code = 200
        self.raw_headers = [*_HEADERS, *headers]
        self._generation = generation
        self._keep_alive = keep_alive
        self._write_timeout = write_timeout
        self._pending: list[str] = []
        self._connection: Connection | None = None  # while the writer waits for something to do
        self._ended = False
        self._done = True
        self._error: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None
        self._writing = False
        self._last_write = monotonic()

    def push(self, event: str) -> None:
        """Send one framed event, or queue it. Called on the event loop; never waits.

        While the client keeps up, the event is written here: waking the writer for every token
        would cost more than writing it.
        """
        connection = self._connection
        if connection is not None and connection.write(event.encode()):
            self._last_write = monotonic()
            return
        self._connection = None
        self._pending.append(event)
        self._notify()

    def end(self, error: RequestError | None = None, *, done: bool = True) -> None:
        """No event follows but, on OpenAI's paths, `[DONE]`; after an error the client is told.

        done: False for a client that cannot read `[DONE]`.
        """
        self._ended = True
        self._done = done
        self._error = error
        self._notify()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(scope, receive, send))
        watcher = asyncio.ensure_future(disconnected(receive))
        try:
            while not writer.done():
                idle = min(self._keep_alive, self._write_timeout)
                await asyncio.wait(
                    {writer, watcher}, timeout=idle, return_when=asyncio.FIRST_COMPLETED
                )
                if watcher.done() and not writer.done():
                    raise ClientLeft
                self._tick()
            await writer
        except (ClientLeft, OSError) as error:
            self._error = error
        except asyncio.CancelledError as error:
            self._error = error
            raise
        finally:
            writer.cancel()
            watcher.cancel()
            self._generation.close(self._error)

    def _tick(self) -> None:
        silence = monotonic() - self._last_write
        if self._writing and silence >= self._write_timeout:
            raise ClientLeft
        if not self._writing and not self._ended and silence >= self._keep_alive:
            self.push(_KEEP_ALIVE)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._something()
        if self._error is not None and not self._pending:
            response = problem_of(self._error).response(scope["path"])
            await response(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        connection: Connection | None = scope["state"].get("connection")
        while self._pending or not self._ended:
            self._last_write = monotonic()
            self._writing = True
            body = "".join(self._pending)
            self._pending.clear()
            await send(_body(body))
            self._writing = False
            if not self._pending and not self._ended:
                self._connection = connection
                await self._something()
                self._connection = None
        await send(_body(self._tail(scope["path"]), more=False))

    def _tail(self, path: str) -> str:
        error = ""
        if self._error is not None:
            error = problem_of(self._error).event(path)
        return error + (DONE if self._done and speaks_openai(path) else "")

    async def _something(self) -> None:
        while not (self._pending or self._ended):
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def _notify(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)


def _body(text: str, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


async def disconnected(receive: Receive) -> None:
    """Return when the client closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
