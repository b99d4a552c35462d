"""serve: what every generating route does between a checked body and its reply."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from fastapi import Request, Response

from infercore_api.observability.logs import RequestRecord
from infercore_api.router.choice import Listener, Prompt
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.reply_headers import stream_headers, whole_headers
from infercore_api.router.state import RouterState
from infercore_api.router.streaming import ClientLeft, EventStream, disconnected

CLIENT_CLOSED_REQUEST = 499  # nginx's number; the client does not see it


class EventFormatter(Listener, Protocol):
    """A listener that writes events into the stream it is given."""

    stream: EventStream


async def serve_whole(
    state: RouterState,
    request: Request,
    permits: int,
    prepare: Callable[[], Sequence[Prompt]],
    reply: Callable[[Generation, Collector], Response],
) -> Response:
    """Generate, and answer when all choices ended; a client that leaves ends them.

    prepare: tokenizes and checks lengths; runs on a worker thread.
    """
    try:
        with state.generator.open(permits, record_of(request)) as generation:
            prompts = await state.workers.run(prepare)
            collector = Collector()
            generation.start(prompts, collector)
            await _unless_client_leaves(collector, request)
            response = reply(generation, collector)
            response.headers.update(whole_headers(generation, state.info.backend))
            return response
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


async def serve_stream(
    state: RouterState,
    request: Request,
    permits: int,
    prepare: Callable[[], Sequence[Prompt]],
    formatter: Callable[[Generation], EventFormatter],
) -> Response:
    """Generate, and answer with a stream of events, which closes the generation at its end."""
    with ExitStack() as cleanup:
        generation = cleanup.enter_context(state.generator.open(permits, record_of(request)))
        prompts = await state.workers.run(prepare)
        listener = formatter(generation)
        headers = stream_headers(prompts, state.info.backend)
        stream = EventStream(
            generation,
            [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
            keep_alive=state.options.keep_alive,
            write_timeout=state.options.write_timeout,
        )
        listener.stream = stream
        generation.start(prompts, listener)
        cleanup.pop_all()
        return stream


def record_of(request: Request) -> RequestRecord:
    """The record that the outermost middleware made for this request."""
    record: RequestRecord = request.scope["state"]["record"]
    return record


async def _unless_client_leaves(collector: Collector, request: Request) -> None:
    done = asyncio.ensure_future(collector.done())
    left = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientLeft
        await done
    finally:
        done.cancel()
        left.cancel()
