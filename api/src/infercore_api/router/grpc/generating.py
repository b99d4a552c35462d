"""What every RPC that generates does between a checked request and its messages."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import RequestError
from infercore_api.observability.logs import RequestRecord
from infercore_api.router.choice import Choice, Prompt
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.state import RouterState

T = TypeVar("T")


class MakeMessage(Protocol):
    """Turns a token that came into the message that tells of it."""

    def __call__(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> Message:
        """The arguments are those of `Listener.on_token`."""
        ...


async def whole(
    state: RouterState,
    record: RequestRecord,
    permits: int,
    prepare: Callable[[], Sequence[Prompt]],
    reply: Callable[[Generation, Collector], T],
) -> T:
    """Generate, and answer when all choices ended.

    prepare: tokenizes and checks lengths; runs on a worker thread.
    A call that is cancelled, or whose deadline passes, ends them: gRPC then cancels this task.
    """
    with state.generator.open(permits, record) as generation:
        prompts = await state.workers.run(prepare)
        collector = Collector()
        generation.start(prompts, collector)
        await collector.done()
        return reply(generation, collector)


async def streamed(
    state: RouterState,
    record: RequestRecord,
    permits: int,
    prepare: Callable[[], Sequence[Prompt]],
    make: MakeMessage,
) -> AsyncGenerator[Message, None]:
    """Generate, and give one message per token. Closing the iterator ends the generation."""
    with state.generator.open(permits, record) as generation:
        prompts = await state.workers.run(prepare)
        messages = _Messages(make)
        generation.start(prompts, messages)
        async for message in messages:
            yield message


class _Messages:
    """A listener that keeps messages until they are written; at most one per token asked for."""

    def __init__(self, make: MakeMessage) -> None:
        self._make = make
        self._queue: asyncio.Queue[Message | RequestError | None] = asyncio.Queue()

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        self._queue.put_nowait(self._make(choice, token_id, text, logprobs, reason))

    def on_done(self, error: RequestError | None) -> None:
        self._queue.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[Message]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, RequestError):
                raise item
            yield item
